package org.meltemi.test;

/** A second interface with the same methods. */
public interface Audit extends Greeter {}
