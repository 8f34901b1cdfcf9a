package org.meltemi.test;

import java.util.Map;
import java.util.concurrent.CompletableFuture;

/** What every provider serves. */
public interface Greeter {
    /** Answers "instance: hello name". */
    String sayHello(String name);

    /** The same, asynchronously on both sides. */
    CompletableFuture<String> sayHelloAsync(String name);

    /** Answers the name of the instance. */
    String who();

    /** Gives a person back, null too. */
    Person echo(Person person);

    Map<String, Object> echoMap(Map<String, Object> map);

    /** Answers null. */
    Person returnNull(String any);

    /** Throws. */
    String fail(String message) throws GreetingException;

    /** Answers the name of the instance after that many milliseconds. */
    String sleep(int ms);

    /** Meant to be called oneway; told() counts it. */
    void tell(String what);

    int told();

    byte[] blob(byte[] bytes);

    /** Answers the attachments of the request as they arrived. */
    Map<String, Object> attachments();
}
