// Package codectest is the conformance kit for codecs: it checks that one is
// what the contract in package codecs demands, whatever its protocol.
//
// A codec's test describes the codec in a [Suite]: how it is made, what real
// peers have sent, what captures lack, what must be refused. [Run] then checks
// one property after the other, each in a subtest of its name, and tells each fault
// once: which message it was, what was being done with it, and the offending bytes
// in hex. [FuzzDecode] and [FuzzEncode] check most of the properties on whatever a
// fuzzer makes of the suite's bytes.
//
// The codec is treated as the pipeline treats it, and worse: bytes are lent in
// memory that is overwritten afterwards, cut at every offset, and asked to be
// encoded onto bytes that must stay. README.md lists the properties.
package codectest
