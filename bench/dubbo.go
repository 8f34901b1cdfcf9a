package main

import "encoding/binary"

// The frames are real Dubbo: a hessian body with one string argument and the
// attachments that Dubbo's own clients send.

func appendString(b []byte, s string) []byte {
	if len(s) < 32 {
		b = append(b, byte(len(s)))
	} else {
		b = append(b, 0x30|byte(len(s)>>8), byte(len(s)))
	}
	return append(b, s...)
}

func frame(flags, status byte, body []byte) []byte {
	b := []byte{0xda, 0xbb, flags, status}
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// dubboRequest returns a two-way request with an argument of size bytes. Its id is
// to be set.
func dubboRequest(size int) []byte {
	arg := text(size, 'a')
	var b []byte
	for _, s := range []string{"2.0.2", "org.bench.Echo", "1.0.0", "echo", "Ljava/lang/String;", string(arg)} {
		b = appendString(b, s)
	}
	b = append(b, 'H')
	for _, s := range []string{
		"path", "org.bench.Echo", "interface", "org.bench.Echo", "version", "1.0.0",
		"tenant", "acme", "timeout", "3000",
	} {
		b = appendString(b, s)
	}
	return frame(0xc2, 0, append(b, 'Z'))
}

// dubboResponse returns an answer with a value of size bytes and attachments.
func dubboResponse(size int) []byte {
	b := appendString([]byte{0x94}, string(text(size, 'A')))
	b = appendString(append(b, 'H'), "dubbo")
	b = appendString(b, "2.0.2")
	return frame(0x02, 20, append(b, 'Z'))
}
