// Runs Debezium with the properties of a file, and prints the topic, key and value of each of the
// first records, tabs between them. Its jars are on the class path:
//
//     java -cp 'JARS/*' DebeziumRecords.java PROPERTIES RECORDS
import io.debezium.embedded.Connect;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.ChangeEventFormat;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;

public class DebeziumRecords {
    public static void main(String[] arguments) throws Exception {
        var properties = new Properties();
        try (var file = Files.newBufferedReader(Path.of(arguments[0]))) {
            properties.load(file);
        }
        var left = new CountDownLatch(Integer.parseInt(arguments[1]));
        var engine = DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
                .using(properties)
                .notifying(event -> {
                    var record = event.record();
                    System.out.println(record.topic() + "\t" + record.key() + "\t" + record.value());
                    left.countDown();
                })
                .build();
        var executor = Executors.newSingleThreadExecutor();
        executor.execute(engine);
        left.await();
        engine.close();
        executor.shutdownNow();
        System.exit(0);
    }
}
