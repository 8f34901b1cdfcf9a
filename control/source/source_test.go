package source

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// asJSON is what somebody has read.
func asJSON(t *testing.T, n *yaml.Node) string {
	t.Helper()
	v, fault := Value(n, "")
	require.Nil(t, fault)
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

// TestWhoReadsYAMLHow: what a value is to Envoy, and to kubectl.
func TestWhoReadsYAMLHow(t *testing.T) {
	for _, tc := range []struct{ yaml, envoy, kubectl string }{
		{"true", `true`, `true`},
		{"yes", `true`, `true`},
		{"Off", `false`, `false`},
		{"N", `false`, `false`},
		{"yES", `"yES"`, `"yES"`},
		{`"yes"`, `"yes"`, `"yes"`},
		{"! yes", `"yes"`, `"yes"`},
		{"&a ! yes", `"yes"`, `"yes"`},
		{"!!str yes", `true`, `"yes"`},
		{`!!bool "yes"`, `true`, `true`},
		{"!foo yes", `true`, `"yes"`},
		{"5", `5`, `5`},
		{"+5", `5`, `5`},
		{"010", `8`, `8`},
		{"08", `"08"`, `8`},
		{"0o10", `"0o10"`, `8`},
		{"0x10", `16`, `16`},
		{"0b11", `"0b11"`, `3`},
		{"1_000", `"1_000"`, `1000`},
		{"5.0", `"5.0"`, `5`},
		{"1e2", `"1e2"`, `100`},
		{".5", `".5"`, `0.5`},
		{".inf", `".inf"`, ``},
		{"2147483647", `2147483647`, `2147483647`},
		{"2147483648", `"2147483648"`, `2147483648`},
		{"9223372036854775808", `"9223372036854775808"`, `9223372036854775808`},
		{`!!int "5"`, `5`, `5`},
		{"!!int x", `"x"`, ``},
		{"!!float 5", `5`, `5`},
		{"!!binary YQ==", `"YQ=="`, `"a"`},
		{"~", `null`, `null`},
		{"", `null`, `null`},
		{"Null", `null`, `null`},
		{"!!null x", `"x"`, ``},
		{"!!str", `""`, `""`},
		{"2001-01-01", `"2001-01-01"`, `"2001-01-01"`},
		{"{a: 1, a: 2}", `{"a":2}`, `{"a":2}`},
		{"{5: a, ~x: b}", `{"5":"a","~x":"b"}`, `{"5":"a","~x":"b"}`},
		{"{yes: a}", `{"yes":"a"}`, `{"true":"a"}`},
		{"{~: a}", `{"null":"a"}`, ``},
		{"[&a 1, *a]", `[1,1]`, `[1,1]`},
		{"{x: &a {b: 1}, <<: *a}", `{"\u003c\u003c":{"b":1},"x":{"b":1}}`, `{"b":1,"x":{"b":1}}`},
		{"{<<: [{a: 1}, {a: 2, b: 3}], b: 4}", `{"\u003c\u003c":[{"a":1},{"a":2,"b":3}],"b":4}`, `{"a":1,"b":4}`},
		{"{!ignore a: {!foo b: c}, d: e}", `{"d":"e"}`, `{"a":{"b":"c"},"d":"e"}`},
		{"&a [*a]", ``, ``},
		{"{? [a] : b}", ``, ``},
		{"{? a : b}", `{"a":"b"}`, `{"a":"b"}`},
		{"{?a : b}", ``, `{"a":"b"}`},
		{`"a\/b"`, `"a/b"`, ``},
		{"&x.y a", `"a"`, ``},
		{"[a, , b,, c]", `["a",null,"b",null,"c"]`, ``},
		{"{a: :b, c: !!str}", `{"a":":b","c":""}`, ``},
		{"\"a\x01\"", "\"a\ufffd\"", ``},
	} {
		t.Run(tc.yaml, func(t *testing.T) {
			text := []byte("v: " + tc.yaml + "\n")
			check := func(want string, n *yaml.Node, fault *Error) {
				t.Helper()
				if want == "" {
					require.NotNil(t, fault)
					require.Equal(t, 1, fault.Line)
					return
				}
				require.Nil(t, fault)
				require.Equal(t, `{"v":`+want+`}`, asJSON(t, n))
			}
			n, _, fault := Envoy(text)
			check(tc.envoy, n, fault)
			docs, _, fault := Kubernetes(text)
			if fault == nil {
				n = docs[0]
			}
			check(tc.kubectl, n, fault)
		})
	}
}

func TestOfAFileEnvoyReadsTheFirstDocument(t *testing.T) {
	for text, line := range map[string]int{"a: b\n": 0, "---\na: b\n...\n": 0, "%YAML 1.2\n---\na: b\n---\nc: d\n": 5, "a: b\n---\n[\n": 3, "a: b\n...\nc\n": 2} {
		n, notes, fault := Envoy([]byte(text))
		require.Nil(t, fault, text)
		require.JSONEq(t, `{"a":"b"}`, asJSON(t, n))
		require.Len(t, notes, min(line, 1), text)
		if line > 0 {
			require.Equal(t, line, notes[0].Line, text)
		}
	}
}

func TestWhatAliasesMakeOfAFileIsBounded(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 10; i++ {
		n, m := string(rune('0'+i)), string(rune('0'+i-1))
		bomb.WriteString("a" + n + ": &a" + n + " [" + strings.Repeat("*a"+m+", ", 10) + "]\n")
	}
	_, _, fault := Envoy([]byte(bomb.String()))
	require.ErrorContains(t, fault, "too large")
	_, _, fault = Kubernetes([]byte(bomb.String()))
	require.ErrorContains(t, fault, "too large")
}

// TestAFileMayBeOneLine: were each scalar looked for from the beginning of its line, this
// would take minutes.
func TestAFileMayBeOneLine(t *testing.T) {
	text := []byte("[" + strings.Repeat(`{"é": 1}, `, 100_000) + "! 2]")
	n, _, fault := Envoy(text)
	require.Nil(t, fault)
	require.Equal(t, "!!str", n.Content[100_000].Tag)
	docs, _, fault := Kubernetes(text)
	require.Nil(t, fault)
	require.Equal(t, "!!str", docs[0].Content[100_000].Tag)
}

func TestEnvoysJSON(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                              `{}`,
		`{"a": [1, -0.5e1, "x"], }`:       `{"a":[1,-5,"x"]}`,
		`{'a': 'it"s', b_1: null,}`:       `{"a":"it\"s","b_1":null}`,
		`{"a": "\/\u00e9\ud83d\ude00\'"}`: `{"a":"/é😀'"}`,
		"{\"a\": \"b\tc\nd\"}":            `{"a":"b\tc\nd"}`,
		"{\"a\":\r\n[true,false]}\n":      `{"a":[true,false]}`,
	} {
		n, fault := EnvoyJSON([]byte(text))
		require.Nil(t, fault, text)
		require.Equal(t, want, asJSON(t, n), text)
	}
	for text, want := range map[string]string{
		"\ufeff{}":             "1: JSON: a byte order mark",
		"":                     "1: JSON: it ends too early",
		"{\n\"a\": [1,\n2":     "3: JSON: it ends too early",
		"{}\n{}":               "2: JSON: something follows",
		"{\"a\": 01}":          "JSON: unexpected '1'",
		"{\"a\": +1}":          "JSON: unexpected '+'",
		"{\"a\": 5.}":          "JSON: unexpected '.'",
		"{\"a\": 1e999}":       "JSON: not a number",
		"{\"a\": yes}":         "JSON: unexpected 'y'",
		"{\"a\" 1}":            "JSON: unexpected '1'",
		"{5: 1}":               "JSON: unexpected '5'",
		"{null: 1}":            "JSON: unexpected 'n'",
		"{,}":                  "JSON: unexpected ','",
		"[1,,2]":               "JSON: unexpected ','",
		"{\"a\": \"\\x\"}":     "JSON: unknown escape",
		"{\"a\": \"\\ud83d\"}": "JSON: a bad Unicode escape",
		"{\"a\": \"\\ude00\"}": "JSON: a bad Unicode escape",
		"{\"a\": \"\xff\"}":    "JSON: a byte that is not UTF-8",
		"{\"a\": \"b":          "JSON: it ends too early",
		"{\"a\": \"\\":         "JSON: it ends too early",
		"// x\n{}":             "JSON: unexpected '/'",
		strings.Repeat("[", 101) + strings.Repeat("]", 101): "nested too deeply",
	} {
		_, fault := EnvoyJSON([]byte(text))
		require.NotNil(t, fault, text)
		require.Contains(t, fault.Error(), want, text)
	}
}

// TestWhatIsWithinItselfIsNestedTooDeeply: its paths alone would take all memory.
func TestWhatIsWithinItselfIsNestedTooDeeply(t *testing.T) {
	for _, text := range []string{"&x {a: *x}", "a: &x [[], *x]", "&x [&y [*y, *x]]", strings.Repeat("[", 200) + strings.Repeat("]", 200)} {
		docs, fault := Parse([]byte(text))
		require.Nil(t, fault)
		_, fault = Value(docs[0], "")
		require.ErrorContains(t, fault, "nested too deeply", text)
	}
	docs, _ := Parse([]byte(strings.Repeat("[", maxNesting) + strings.Repeat("]", maxNesting)))
	_, fault := Value(docs[0], "")
	require.Nil(t, fault)
}

// FuzzRead: nothing makes a reader panic, or go on for ever.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"a: &b [*b]", "{<<: {<<: x}}", "a: ! 5", "{\"a\": \"\\ud83d\\ude00\"}", "%YAML 1.2\n---\n", "a: |\n  b", "{? x : y}", "\xff\xfea\x00", "*x: y", "- - -\t- a"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _, _ = Envoy(text)
		_, _, _ = Kubernetes(text)
		_, _ = EnvoyJSON(text)
	})
}

// TestHowKubectlSplitsAFile: into objects of JSON, or at lines that begin with ---.
func TestHowKubectlSplitsAFile(t *testing.T) {
	for _, tc := range []struct {
		text  string
		want  []string
		lines []int
		notes string
		fault string
	}{
		{text: "a: 1\n---\nb: 2\n", want: []string{`{"a":1}`, `{"b":2}`}, lines: []int{1, 3}},
		{text: "---\r\n# x\r\n--- # y\r\na: 1\r\n---  \r\n\r\n", want: []string{`{"a":1}`}, lines: []int{4}},
		{text: "a: 1\n--- {b: 2}\n", fault: "2: kubectl wants nothing behind --- but a comment"},
		{text: "a: 1\n---b: 2\n", fault: "2: kubectl wants nothing behind --- but a comment"},
		{text: "a: 1\n...\nb: 2\n---\nc: 3\n", want: []string{`{"a":1}`, `{"c":3}`}, lines: []int{1, 5}, notes: "2: kubectl reads nothing from here to the next ---"},
		{text: "a: 1\n---\n{\"b\": 1}\n{\"c\": 2}\n", want: []string{`{"a":1}`, `{"b":1}`}, lines: []int{1, 3}, notes: "3: kubectl reads nothing from here to the next ---"},
		{text: "a: 1\n...\n---\nb: 2\n", want: []string{`{"a":1}`, `{"b":2}`}, lines: []int{1, 4}},
		{text: "a: 'x\n--- y\n  z'\n", fault: "2: kubectl wants nothing behind --- but a comment"},
		{text: "a: 1\n---\n\nb: [\n", fault: "4: did not find expected node content"},
		{text: "%YAML 1.1\n---\na: 1\n", fault: "1: did not find expected <document start>"},
		{text: "a: &x 1\n---\nb: *x\n", fault: "3: unknown anchor 'x' referenced"},
		{text: ` {"a": "\/\ud83d\ude00\u00e9", "b": "yes"}`, want: []string{`{"a":"/😀é","b":"yes"}`}, lines: []int{1}},
		{text: "{\"a\": 1,\n\"<<\": 5e2}\n\n{\"b\":\tnull} {\"5\": \"5\"}", want: []string{`{"a":1,"<<":500}`, `{"b":null}`, `{"5":"5"}`}, lines: []int{1, 4, 4}},
		{text: "{\"a\": \"\\/\"}\n---\nb: yes\n--- \n{c: on}\n", want: []string{`{"a":"/"}`, `{"b":true}`, `{"c":true}`}, lines: []int{1, 3, 5}},
		{text: "{a: 1,}\n---\nb: 2\n", want: []string{`{"a":1}`, `{"b":2}`}, lines: []int{1, 3}},
		{text: "{\"a\": 1} {\"b\": 2}\n---\nc: 3\n", fault: "1: JSON: invalid character '-' in numeric literal"},
		{text: "{\"a\": 1, \"a\": 2}\n", want: []string{`{"a":2}`}, lines: []int{1}, notes: "1: a: given twice: kubectl takes the last"},
	} {
		t.Run(tc.text, func(t *testing.T) {
			docs, notes, fault := Kubernetes([]byte(tc.text))
			if tc.fault != "" {
				require.NotNil(t, fault)
				require.Equal(t, tc.fault, fault.Error())
				return
			}
			require.Nil(t, fault)
			require.Equal(t, tc.notes, notes.Error())
			require.Len(t, docs, len(tc.want))
			for i, d := range docs {
				require.JSONEq(t, tc.want[i], asJSON(t, d))
				require.Equal(t, tc.lines[i], d.Line)
			}
		})
	}
}

func TestWhatIsOfKubernetes(t *testing.T) {
	for text, is := range map[string]bool{
		"apiVersion: v1\n": true, "a: b\n---\napiVersion: v1\n": true, "apiVersion: [\n": true,
		`{"kind": "\/", "apiVersion": "v1"}`: true, "{\"a\": 1}\n{\"apiVersion\": \"v1\"}": true,
		"": false, "a: apiVersion\n": false, "a:\n  apiVersion: v1\n": false, "- apiVersion: v1\n": false, "[": false, "{\"a\": \"\\/\"}": false,
	} {
		require.Equal(t, is, IsKubernetes([]byte(text)), text)
	}
}
