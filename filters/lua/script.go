package lua

import (
	"errors"
	"fmt"
	"strings"

	lua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/parse"
)

const (
	onRequest  = "envoy_on_request"
	onResponse = "envoy_on_response"

	// maxSource is the longest script, in bytes.
	maxSource = 256 << 10
	// loadInstructions are those of a script's outermost level.
	loadInstructions = 200_000
)

// script is a compiled script. It does not change, and all workers run it.
type script struct {
	name   string // for log lines
	source string
	proto  *lua.FunctionProto
}

// compile compiles a script, and sees that it can be loaded.
func compile(name, source string) (*script, error) {
	switch n := len(source); {
	case n == 0:
		return nil, errors.New("must not be empty")
	case n > maxSource:
		return nil, fmt.Errorf("must have at most %d bytes, has %d", maxSource, n)
	}
	chunk, err := parse.Parse(strings.NewReader(source), name)
	var syntax *parse.Error
	if errors.As(err, &syntax) {
		if syntax.Pos.Line < 0 { // behind the last one
			return nil, fmt.Errorf("at its end: %s", syntax.Message)
		}
		return nil, fmt.Errorf("line %d: %s near %q", syntax.Pos.Line, syntax.Message, syntax.Token)
	} else if err != nil {
		return nil, err
	}
	var refused []error
	g := guarder{func(line int, format string, args ...any) {
		refused = append(refused, fmt.Errorf("line %d: "+format, append([]any{line}, args...)...))
	}}
	g.block(chunk)
	if err := errors.Join(refused...); err != nil {
		return nil, err
	}
	s := &script{name: name, source: source}
	var large *lua.CompileError
	if s.proto, err = lua.Compile(chunk, name); errors.As(err, &large) {
		return nil, fmt.Errorf("line %d: %s", large.Line, large.Message)
	} else if err != nil {
		return nil, err
	}
	loaded, err := s.load(nil)
	switch {
	case err != nil:
		return nil, err
	case loaded.request == nil && loaded.response == nil:
		return nil, fmt.Errorf("defines neither %s nor %s", onRequest, onResponse)
	}
	return s, nil
}
