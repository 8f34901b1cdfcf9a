package org.meltemi.test.brpc;

import com.baidu.bjf.remoting.protobuf.FieldType;
import com.baidu.bjf.remoting.protobuf.annotation.Protobuf;

/** A message with a string. */
public class Text {
    @Protobuf(fieldType = FieldType.STRING, order = 1)
    public String text = "";

    public Text() {}

    public Text(String text) { this.text = text; }
}
