package org.meltemi.test.brpc;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/** A client that obeys lines of JSON, as the peers of other protocols do. */
public abstract class Client {
    /** What a library is asked to call; the names on the wire come with the command. */
    public interface Calls {
        Text text(Text in);

        Text number(Number in);

        Blob blob(Blob in);
    }

    /** The outcome of one call. */
    protected static final class Outcome {
        public Object value;
        public byte[] attachment;
    }

    private final Gson gson = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();
    private final PrintStream out;

    protected Client(PrintStream out) { this.out = out; }

    /** Makes one call. */
    protected abstract Outcome call(Command cmd) throws Exception;

    /** What kind of error a library has thrown. */
    protected String kind(Throwable e) { return e.getClass().getSimpleName(); }

    /** Calls the method of that kind. */
    protected static Object invoke(Calls calls, Command cmd) {
        JsonArray args = cmd.args == null ? new JsonArray() : cmd.args;
        switch (cmd.method) {
            case "Sleep":
                return calls.number(new Number(args.get(0).getAsLong())).text;
            case "Blob":
                Blob blob = calls.blob(new Blob(Base64.getDecoder().decode(args.get(0).getAsString())));
                return Base64.getEncoder().encodeToString(blob.bytes);
            default:
                return calls.text(new Text(args.size() == 0 ? "" : args.get(0).getAsString())).text;
        }
    }

    /** Obeys until the end of the standard input. */
    protected final void obey() throws IOException, InterruptedException {
        ExecutorService commands = Executors.newCachedThreadPool();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            Command cmd = gson.fromJson(line, Command.class);
            commands.execute(() -> run(cmd));
        }
        commands.shutdown();
        commands.awaitTermination(1, TimeUnit.HOURS);
    }

    private synchronized void print(Object v) {
        out.println(gson.toJson(v));
        out.flush();
    }

    /** Carries one command out. */
    private void run(Command cmd) {
        int callers = Math.max(1, cmd.concurrency);
        int count = cmd.durationMs > 0 ? cmd.count : Math.max(1, cmd.count);
        long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(cmd.durationMs);
        AtomicLong next = new AtomicLong();
        Map<String, Integer> values = new LinkedHashMap<>();
        Map<String, Integer> errors = new LinkedHashMap<>();
        Latencies took = new Latencies();
        Runnable caller = () -> {
            for (; ; ) {
                long n = next.incrementAndGet();
                if (count > 0 && n > count || cmd.durationMs > 0 && System.nanoTime() > end) {
                    return;
                }
                Map<String, Object> answer = answer(cmd);
                if (!cmd.summary) {
                    print(answer);
                    continue;
                }
                synchronized (took) {
                    took.add((Long) answer.get("latency_us"));
                    if (answer.containsKey("error")) {
                        errors.merge((String) answer.get("error"), 1, Integer::sum);
                    } else {
                        values.merge(String.valueOf(answer.get("value")), 1, Integer::sum);
                    }
                }
            }
        };
        ExecutorService pool = Executors.newFixedThreadPool(callers);
        for (int i = 0; i < callers; i++) {
            pool.execute(caller);
        }
        pool.shutdown();
        try {
            pool.awaitTermination(1, TimeUnit.HOURS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        if (cmd.summary) {
            Map<String, Object> line = new LinkedHashMap<>();
            line.put("id", cmd.id);
            line.put("calls", took.size());
            line.put("values", values);
            line.put("errors", errors);
            line.put("latency_us", took.percentiles());
            print(line);
        }
    }

    private Map<String, Object> answer(Command cmd) {
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("id", cmd.id);
        long start = System.nanoTime();
        try {
            Outcome outcome = call(cmd);
            answer.put("value", outcome.value);
            if (outcome.attachment != null) {
                answer.put("attachment", Base64.getEncoder().encodeToString(outcome.attachment));
            }
        } catch (Throwable e) {
            answer.put("error", e.getMessage() == null ? e.toString() : e.getMessage());
            answer.put("error_type", kind(e));
        }
        answer.put("latency_us", TimeUnit.NANOSECONDS.toMicros(System.nanoTime() - start));
        return answer;
    }

    /** How long calls took, in microseconds. */
    private static final class Latencies {
        private long[] v = new long[1024];
        private int n;

        void add(long x) {
            if (n == v.length) {
                v = Arrays.copyOf(v, 2 * n);
            }
            v[n++] = x;
        }

        int size() { return n; }

        Map<String, Long> percentiles() {
            Map<String, Long> m = new LinkedHashMap<>();
            long[] sorted = Arrays.copyOf(v, n);
            Arrays.sort(sorted);
            if (n > 0) {
                m.put("p50", sorted[n / 2]);
                m.put("p90", sorted[n * 9 / 10]);
                m.put("p99", sorted[n * 99 / 100]);
                m.put("max", sorted[n - 1]);
            }
            return m;
        }
    }
}
