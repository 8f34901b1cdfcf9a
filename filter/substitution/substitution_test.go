package substitution_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/substitution"
)

func scan(format string) (string, error) {
	var b strings.Builder
	err := substitution.Scan(format, func(s string) { b.WriteString(s) }, func(o substitution.Operator) error {
		if o.Name == "BAD" {
			return errors.New("no")
		}
		fmt.Fprintf(&b, "<%s %q %v %d>", o.Name, o.Argument, o.Given, o.Length)
		return nil
	})
	return b.String(), err
}

func TestScan(t *testing.T) {
	for format, want := range map[string]string{
		"":                                      "",
		"a %% b":                                "a % b",
		"%%%A%%%":                               `%<A "" false 0>%`,
		"a%A1_B%b%C()%":                         `a<A1_B "" false 0>b<C "" true 0>`,
		"%REQ(:x?y):12%":                        `<REQ ":x?y" true 12>`,
		"%START_TIME(%Y/%m %3f)% %A%":           `<START_TIME "%Y/%m %3f" true 0> <A "" false 0>`,
		`%COALESCE({"operators": ["A(b)"]}):3%`: `<COALESCE "{\"operators\": [\"A(b)\"]}" true 3>`,
	} {
		got, err := scan(format)
		require.NoError(t, err, format)
		require.Equal(t, want, got, format)
	}
}

func TestWhatIsNoFormat(t *testing.T) {
	for format, want := range map[string]string{
		"100 % sure":        `no operator begins at "% sure": a percent sign is written %%`,
		"%A":                `no operator begins at "%A": a percent sign is written %%`,
		"%a%":               `no operator begins at "%a%": a percent sign is written %%`,
		"%A(b%":             `no operator begins at "%A(b%": a percent sign is written %%`,
		"%A:0%":             "%A%: length 0 is not between 1 and 2147483647",
		"%A(x):9999999999%": "%A%: length 9999999999 is not between 1 and 2147483647",
		"%A% %BAD(x)%":      "%BAD%: no",
	} {
		_, err := scan(format)
		require.EqualError(t, err, want, format)
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		s    string
		most int
		want string
	}{{"abc", 0, "abc"}, {"abc", 3, "abc"}, {"abc", 2, "ab"}, {"aü", 2, "a"}, {"ü", 1, ""}, {"aü", 3, "aü"}} {
		require.Equal(t, tt.want, tt.s[:substitution.Cut(tt.s, tt.most)])
	}
}
