package peers;

import static peers.Application.need;
import static peers.Application.text;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.state.WindowStoreIterator;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.time.Instant;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;

/**
 * The reference commands under taskflow's whole contract: strict validation, a ledger of an hour that answers
 * resends, an outcome for each command, a chain of hashes, gapless event ids, a snapshot for a new owner.
 */
public final class WholeContract {
    private static final Duration DEDUPE_WINDOW = Duration.ofHours(1);
    private static final int STATE_MAX_BYTES = 256 * 1024;

    public static void main(String[] args) throws Exception {
        Topology t = new Topology();
        t.addSource("in", Serdes.ByteArray().deserializer(), Serdes.ByteArray().deserializer(), need("PEER_INPUT"));
        t.addProcessor("flow", FlowProcessor::new, "in");
        t.addStateStore(
            Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore("flows"), Serdes.Bytes(), Serdes.ByteArray())
                .withLoggingEnabled(Map.of()),
            "flow");
        t.addStateStore(
            Stores.windowStoreBuilder(
                    Stores.persistentWindowStore("ledger", DEDUPE_WINDOW, DEDUPE_WINDOW, false),
                    Serdes.Bytes(), Serdes.ByteArray())
                .withLoggingEnabled(Map.of()),
            "flow");
        t.addStateStore(
            Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore("cursor"), Serdes.Bytes(), Serdes.ByteArray())
                .withLoggingEnabled(Map.of()).withCachingEnabled(),
            "flow");
        t.addSink("audit", need("PEER_AUDIT"), Serdes.ByteArray().serializer(), Serdes.ByteArray().serializer(), "flow");
        t.addSink(
            "outcomes", need("PEER_OUTCOMES"), Serdes.ByteArray().serializer(), Serdes.ByteArray().serializer(), "flow");
        Application.run(t);
    }

    static final class FlowProcessor implements Processor<byte[], byte[], byte[], byte[]> {
        private static final ObjectMapper JSON = new ObjectMapper();
        private static final ObjectMapper SORTED =
            JsonMapper.builder().configure(SerializationFeature.ORDER_MAP_ENTRIES_BY_KEYS, true).build();
        private static final JsonNodeFactory NODES = JsonNodeFactory.instance;
        private static final HexFormat HEX = HexFormat.of();
        private static final List<String> COMMON = List.of(
            "kind", "command_id", "flow_id", "issued_by", "expected_revision", "expires_at", "dry_run", "schema_version");
        private static final List<String> TEXTS = List.of(
            "controller_id", "goal", "owner_session_key", "requester_origin", "current_step");
        private static final Map<String, Set<String>> FIELDS = Map.of(
            "create", with(TEXTS, "state_json"),
            "start", with(List.of()),
            "update_state", with(List.of(), "patch", "next_step"));
        private static final Map<String, List<String>> ALLOWED = Map.of(
            "created", List.of("cancel", "record_step_observation", "request_cancel", "start_running", "update_state"),
            "running", List.of(
                "cancel", "fail", "finish", "record_step_observation", "request_cancel", "set_waiting", "update_state"));
        private static final Bytes NEXT = Bytes.wrap("next".getBytes(StandardCharsets.UTF_8));

        private final MessageDigest sha = sha256();
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<Bytes, byte[]> flows;
        private KeyValueStore<Bytes, byte[]> cursor;
        private WindowStore<Bytes, byte[]> ledger;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            this.flows = context.getStateStore("flows");
            this.ledger = context.getStateStore("ledger");
            this.cursor = context.getStateStore("cursor");
        }

        @Override
        public void process(Record<byte[], byte[]> r) {
            try {
                handle(r, context.recordMetadata().orElseThrow());
            } catch (IOException e) {
                throw new RuntimeException(e);
            }
        }

        private void handle(Record<byte[], byte[]> r, RecordMetadata md) throws IOException {
            JsonNode command = JSON.readTree(r.value());
            // A JsonNode is not sorted by ORDER_MAP_ENTRIES_BY_KEYS: to a map and back.
            byte[] digest = hash(SORTED.writeValueAsBytes(SORTED.treeToValue(command, Object.class)));
            String flowId = command.get("flow_id").textValue();
            String commandId = command.get("command_id").textValue();
            Bytes ledgerKey = Bytes.wrap(hash((flowId + commandId).getBytes(StandardCharsets.UTF_8)));
            long since = r.timestamp() - DEDUPE_WINDOW.toMillis();
            try (WindowStoreIterator<byte[]> first = ledger.fetch(ledgerKey, since, r.timestamp())) {
                if (first.hasNext()) {
                    answer(r, md, command, null, "duplicate", null, digest, NODES.arrayNode());
                    return;
                }
            }
            Bytes key = Bytes.wrap(r.key());
            byte[] old = flows.get(key);
            JsonNode snapshot = old == null ? null : JSON.readTree(old);
            ObjectNode flow = snapshot == null ? null : (ObjectNode) snapshot.get("flow");
            byte[] chain = snapshot == null ? new byte[16] : HEX.parseHex(snapshot.get("chain").textValue());
            ObjectNode payload = NODES.objectNode();
            String fact;
            try {
                check(command, flow, flowId, commandId, r.key());
                switch (text(command, "kind")) {
                    case "create" -> {
                        flow = create(command, flow, flowId, payload, at(r));
                        fact = "created";
                    }
                    case "start" -> {
                        start(flow);
                        fact = "started";
                    }
                    default -> {
                        update(command, flow, payload);
                        fact = "state_updated";
                    }
                }
            } catch (Rejected e) {
                byte[] outcome = answer(r, md, command, flow, "rejected", e.getMessage(), digest, NODES.arrayNode());
                ledger.put(ledgerKey, outcome, r.timestamp());
                return;
            }
            flow.put("updated_at", at(r));
            long eventId = nextEventId(md);
            byte[] event = event(eventId, command, flow, fact, payload, md, at(r));
            chain = hash(chain, event);
            snapshot = NODES.objectNode().put("last_event_id", eventId).put("chain", HEX.formatHex(chain)).set("flow", flow);
            flows.put(key, JSON.writeValueAsBytes(snapshot));
            context.forward(r.withValue(event).withHeaders(new RecordHeaders().add("taskflow-chain", chain)), "audit");
            answer(r, md, command, flow, "accepted", null, digest, NODES.arrayNode().add(eventId));
            ByteBuffer entry = ByteBuffer.allocate(48).putLong(r.timestamp()).put(digest)
                .putLong(flow.get("revision").longValue()).putLong(eventId);
            ledger.put(ledgerKey, entry.array(), r.timestamp());
        }

        private static void check(JsonNode command, ObjectNode flow, String flowId, String commandId, byte[] key)
                throws Rejected {
            Set<String> known = FIELDS.get(text(command, "kind"));
            if (known == null) {
                throw new Rejected("unknown kind");
            }
            for (Iterator<String> names = command.fieldNames(); names.hasNext(); ) {
                if (!known.contains(names.next())) {
                    throw new Rejected("unknown field");
                }
            }
            UUID.fromString(commandId);
            UUID.fromString(flowId);
            if (!flowId.equals(new String(key, StandardCharsets.UTF_8))) {
                throw new Rejected("flow_id is not the key");
            }
            if (flow != null && !flow.get("owner_session_key").textValue().equals(text(command, "issued_by"))) {
                throw new Rejected("not owner");
            }
            JsonNode expected = command.get("expected_revision");
            if (expected != null && !expected.isNull()
                && (flow == null || expected.longValue() != flow.get("revision").longValue())) {
                throw new Rejected("revision mismatch");
            }
        }

        private static ObjectNode create(JsonNode command, ObjectNode flow, String id, ObjectNode payload, String at)
                throws Rejected {
            if (flow != null) {
                throw new Rejected("already exists");
            }
            flow = NODES.objectNode().put("id", id);
            for (String field : TEXTS) {
                flow.put(field, text(command, field));
                payload.put(field, text(command, field));
            }
            flow.set("state_json", command.get("state_json"));
            payload.set("state_json", command.get("state_json"));
            return flow.putNull("wait_json").put("status", "created").put("cancel_requested", false).put("revision", 0L)
                .put("created_at", at);
        }

        private static void start(ObjectNode flow) throws Rejected {
            if (flow == null) {
                throw new Rejected("not found");
            }
            if (!flow.get("status").textValue().equals("created")) {
                throw new Rejected("illegal transition");
            }
            flow.put("status", "running").put("revision", flow.get("revision").longValue() + 1);
        }

        private static void update(JsonNode command, ObjectNode flow, ObjectNode payload)
                throws Rejected, JsonProcessingException {
            if (flow == null) {
                throw new Rejected("not found");
            }
            JsonNode patch = command.get("patch");
            ObjectNode state = (ObjectNode) flow.get("state_json");
            for (Iterator<Map.Entry<String, JsonNode>> it = patch.fields(); it.hasNext(); ) {
                Map.Entry<String, JsonNode> entry = it.next();
                state.set(entry.getKey(), entry.getValue());
            }
            if (JSON.writeValueAsBytes(state).length > STATE_MAX_BYTES) {
                throw new Rejected("state too large");
            }
            JsonNode step = command.get("next_step");
            if (step != null && !step.isNull()) {
                flow.set("current_step", step);
            }
            payload.set("patch", patch);
            payload.set("next_step", step == null ? NODES.nullNode() : step);
            flow.put("revision", flow.get("revision").longValue() + 1);
        }

        private long nextEventId(RecordMetadata md) {
            byte[] next = cursor.get(NEXT);
            long id = next == null ? ((long) md.partition() << 40) + 1 : ByteBuffer.wrap(next).getLong();
            cursor.put(NEXT, ByteBuffer.allocate(8).putLong(id + 1).array());
            return id;
        }

        private static byte[] event(long id, JsonNode command, ObjectNode flow, String fact, ObjectNode payload,
                                    RecordMetadata md, String at) throws JsonProcessingException {
            ObjectNode e = NODES.objectNode();
            e.put("id", id);
            e.set("flow_id", command.get("flow_id"));
            e.put("kind", fact);
            e.set("payload_json", payload);
            e.put("at", at);
            e.set("revision", flow.get("revision"));
            e.set("status", flow.get("status"));
            e.set("command_id", command.get("command_id"));
            e.set("actor", command.get("issued_by"));
            source(e, md);
            e.put("schema_version", 1);
            return JSON.writeValueAsBytes(e);
        }

        /** Write the outcome of `command`, and return it. */
        private byte[] answer(Record<byte[], byte[]> r, RecordMetadata md, JsonNode command, ObjectNode flow,
                              String verdict, String code, byte[] digest, ArrayNode eventIds)
                throws JsonProcessingException {
            ObjectNode o = NODES.objectNode();
            o.set("command_id", command.get("command_id"));
            o.set("flow_id", command.get("flow_id"));
            o.set("kind", command.get("kind"));
            o.put("verdict", verdict);
            o.put("code", code);
            o.put("message", "The state was updated.");
            o.set("revision", flow == null ? NODES.nullNode() : flow.get("revision"));
            o.set("status", flow == null ? NODES.nullNode() : flow.get("status"));
            o.set("event_ids", eventIds);
            if (flow == null) {
                o.putNull("allowed");
            } else {
                ALLOWED.get(flow.get("status").textValue()).forEach(o.putArray("allowed")::add);
            }
            o.putObject("details");
            o.put("dry_run", false);
            o.put("command_digest", HEX.formatHex(digest));
            source(o, md);
            o.put("at", at(r));
            byte[] value = JSON.writeValueAsBytes(o);
            context.forward(r.withValue(value).withHeaders(new RecordHeaders()), "outcomes");
            return value;
        }

        private static void source(ObjectNode document, RecordMetadata md) {
            document.putObject("source").put("topic", md.topic()).put("partition", md.partition())
                .put("offset", md.offset());
        }

        private static String at(Record<byte[], byte[]> r) {
            return Instant.ofEpochMilli(r.timestamp()).toString();
        }

        private byte[] hash(byte[]... parts) {
            for (byte[] part : parts) {
                sha.update(part);
            }
            return Arrays.copyOf(sha.digest(), 16);
        }

        private static MessageDigest sha256() {
            try {
                return MessageDigest.getInstance("SHA-256");
            } catch (NoSuchAlgorithmException e) {
                throw new IllegalStateException(e);
            }
        }

        private static Set<String> with(List<String> texts, String... others) {
            var names = new java.util.HashSet<>(COMMON);
            names.addAll(texts);
            names.addAll(List.of(others));
            return Set.copyOf(names);
        }
    }
}
