-- What the topics say, beside the tables that are compared with it; gone with the transaction.

CREATE TEMPORARY TABLE topic_flows (LIKE taskflow_flows, PRIMARY KEY (id)) ON COMMIT DROP;
CREATE TEMPORARY TABLE topic_steps (LIKE taskflow_steps, PRIMARY KEY (id)) ON COMMIT DROP;
CREATE TEMPORARY TABLE topic_events (LIKE taskflow_events, PRIMARY KEY (id)) ON COMMIT DROP;
-- Flows that have changed since the tables were written: they cannot be compared.
CREATE TEMPORARY TABLE changed_flows (flow_id uuid PRIMARY KEY) ON COMMIT DROP;
