package org.meltemi.test.brpc;

/** What the application throws. */
public final class Failure extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** Its error code, where the library can carry one. */
    public static final int CODE = 10042;

    public Failure(String message) { super(message); }
}
