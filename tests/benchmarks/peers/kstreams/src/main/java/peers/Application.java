package peers;

import com.fasterxml.jackson.databind.JsonNode;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;

import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;

/** What both applications share: settings from PEER_ variables, and a life until SIGTERM. */
final class Application {
    private Application() {
    }

    static void run(Topology topology) throws InterruptedException {
        Properties p = new Properties();
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, need("PEER_BOOTSTRAP"));
        p.put(StreamsConfig.APPLICATION_ID_CONFIG, need("PEER_APP_ID"));
        p.put(StreamsConfig.STATE_DIR_CONFIG, need("PEER_STATE_DIR"));
        p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, need("PEER_THREADS"));
        p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, need("PEER_COMMIT_MS"));
        p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, "1");
        p.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        p.put(StreamsConfig.producerPrefix("compression.type"), "lz4");
        KafkaStreams streams = new KafkaStreams(topology, p);
        streams.setUncaughtExceptionHandler(e -> {
            e.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        CountDownLatch done = new CountDownLatch(1);
        streams.setStateListener((now, old) -> {
            if (now == KafkaStreams.State.ERROR || now == KafkaStreams.State.NOT_RUNNING) {
                done.countDown();
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
        streams.start();
        done.await();
        if (streams.state() == KafkaStreams.State.ERROR) {
            System.exit(1);
        }
    }

    static String need(String name) {
        String value = System.getenv(name);
        if (value == null) {
            System.err.println("set " + name);
            System.exit(2);
        }
        return value;
    }

    static String text(JsonNode node, String field) throws Rejected {
        JsonNode value = node.get(field);
        if (value == null || !value.isTextual()) {
            throw new Rejected("bad " + field);
        }
        return value.textValue();
    }
}

/** A command that is refused; it costs no stack trace. */
final class Rejected extends Exception {
    Rejected(String why) {
        super(why, null, false, false);
    }
}
