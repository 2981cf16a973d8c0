// Reads manifests as a JSON array, and writes what the published schemas of Strimzi, KEDA and the
// Prometheus operator find in each, as a JSON array of arrays: where, and which rule. It runs in
// the folder where the npm packages @kubernetes-models/* are installed.
import { join } from "node:path";
import { cwd, stdin } from "node:process";
import { json } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const SCHEMAS = {
  "kafka.strimzi.io/v1 KafkaTopic": "strimzi-kafka-operator/_schemas/KafkaStrimziIoV1KafkaTopic",
  "kafka.strimzi.io/v1 KafkaUser": "strimzi-kafka-operator/_schemas/KafkaStrimziIoV1KafkaUser",
  "keda.sh/v1alpha1 ScaledObject":
    "keda/_schemas/ComGithubKedacoreKedaV2ApisKedaV1alpha1ScaledObject",
  "keda.sh/v1alpha1 TriggerAuthentication":
    "keda/_schemas/ComGithubKedacoreKedaV2ApisKedaV1alpha1TriggerAuthentication",
  "monitoring.coreos.com/v1 ServiceMonitor":
    "prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1ServiceMonitor",
};

async function problems(manifest) {
  const kind = `${manifest.apiVersion} ${manifest.kind}`;
  if (!(kind in SCHEMAS)) return [`there is no schema of ${kind}`];
  const path = join(cwd(), "node_modules", "@kubernetes-models", `${SCHEMAS[kind]}.js`);
  const { validate } = await import(pathToFileURL(path));
  return validate(manifest)
    ? []
    : validate.errors.map((error) => `${error.instancePath} ${error.keyword}`);
}

const manifests = await json(stdin);
console.log(JSON.stringify(await Promise.all(manifests.map(problems))));
