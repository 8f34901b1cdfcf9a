package org.meltemi.test;

/** A checked exception with a field of its own. */
public class GreetingException extends Exception {
    private int code;

    public GreetingException() {}

    public GreetingException(String message, int code) {
        super(message);
        this.code = code;
    }

    public int getCode() { return code; }
}
