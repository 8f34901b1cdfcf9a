package org.meltemi.test;

import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.dubbo.rpc.RpcContext;

/** Serves both interfaces. */
public class GreeterImpl implements Audit {
    private final String name;
    private final AtomicInteger told = new AtomicInteger();

    GreeterImpl(String name) { this.name = name; }

    @Override
    public String sayHello(String who) { return name + ": hello " + who; }

    @Override
    public CompletableFuture<String> sayHelloAsync(String who) {
        return CompletableFuture.supplyAsync(
                () -> sayHello(who), CompletableFuture.delayedExecutor(10, TimeUnit.MILLISECONDS));
    }

    @Override
    public String who() { return name; }

    @Override
    public Person echo(Person person) { return person; }

    @Override
    public Map<String, Object> echoMap(Map<String, Object> map) { return map; }

    @Override
    public Person returnNull(String any) { return null; }

    @Override
    public String fail(String message) throws GreetingException { throw new GreetingException(message, 42); }

    @Override
    public String sleep(int ms) {
        try {
            Thread.sleep(ms);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        return name;
    }

    @Override
    public void tell(String what) { told.incrementAndGet(); }

    @Override
    public int told() { return told.get(); }

    @Override
    public byte[] blob(byte[] bytes) { return bytes; }

    @Override
    public Map<String, Object> attachments() {
        return new HashMap<>(RpcContext.getServerAttachment().getObjectAttachments());
    }
}
