package lua

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	luav1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/lua/v1alpha"
)

// maxScripts is how many a filter has for routes to name.
const maxScripts = 100

var usualFailed = codecs.LocalError{Type: codecs.Unspecified, Message: "a script failed"}

// config is a frozen Lua.
type config struct {
	standard     *script // nil: there is none
	named        map[string]*script
	deny         bool
	failed       codecs.LocalError
	instructions int
	context      *structpb.Struct
}

// settings are those of a route.
type settings struct {
	disabled bool
	name     string  // "": none is named
	script   *script // nil: it has none of its own
	context  *structpb.Struct
}

func judge(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(luav1alpha.Lua)
	if err := fields.Unpack(any, m); err != nil {
		return nil, err
	}
	var faults fields.Faults
	c := &config{
		named: map[string]*script{}, deny: m.GetFailureModeDeny(), context: m.GetFilterContext(),
		instructions: faults.Number(m.GetMaxInstructions(), "max_instructions", 100, 1_000_000, 50_000),
	}
	if n := len(m.GetSourceCodes()); n > maxScripts {
		faults.Add("source_codes", "must be at most %d, are %d", maxScripts, n)
		return nil, faults.Err()
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetSourceCodes())) {
		path := fmt.Sprintf("source_codes[%q]", name)
		if name == "" {
			faults.Add(path, "the name must not be empty")
		}
		c.named[name] = source(m.GetSourceCodes()[name], path, cmp.Or(name, path), &faults)
	}
	if d := m.GetDefaultSourceCode(); d != nil {
		c.standard = source(d, "default_source_code", "default_source_code", &faults)
	}
	var errs []*fields.Error
	c.failed, errs = route.Reply(m.GetStatusOnError(), usualFailed, "status_on_error", env.Codecs)
	for _, err := range errs {
		faults.AddAll("", err)
	}
	return c, faults.Err()
}

func judgeRoute(any *anypb.Any) (filter.Config, error) {
	m := new(luav1alpha.LuaPerRoute)
	if err := fields.Unpack(any, m); err != nil {
		return nil, err
	}
	var faults fields.Faults
	s := &settings{context: m.GetFilterContext()}
	switch m.GetOverride().(type) {
	case *luav1alpha.LuaPerRoute_Disabled:
		if s.disabled = m.GetDisabled(); !s.disabled {
			faults.Add("disabled", "must be true")
		}
	case *luav1alpha.LuaPerRoute_Name:
		if s.name = m.GetName(); s.name == "" {
			faults.Add("name", "must not be empty")
		}
	case *luav1alpha.LuaPerRoute_SourceCode:
		s.script = source(m.GetSourceCode(), "source_code", "source_code", &faults)
	default:
		if s.context == nil {
			faults.Add("source_code", "required, or disabled, name or filter_context")
		}
	}
	return s, faults.Err()
}

// source compiles what is at path.
func source(d *corev3.DataSource, path, name string, faults *fields.Faults) *script {
	faults.Only(d, path, "filename", "inline_bytes", "inline_string", "environment_variable")
	var text string
	switch s := d.GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		path, text = path+".inline_string", s.InlineString
	case *corev3.DataSource_InlineBytes:
		path, text = path+".inline_bytes", string(s.InlineBytes)
	case *corev3.DataSource_EnvironmentVariable:
		path, text = path+".environment_variable", os.Getenv(s.EnvironmentVariable)
	case *corev3.DataSource_Filename:
		path += ".filename"
		var err error
		if text, err = read(s.Filename); err != nil {
			faults.Add(path, "%v", err)
			return nil
		}
	default:
		faults.Add(path, "required: inline_string, filename, inline_bytes or environment_variable")
		return nil
	}
	sc, err := compile(name, text)
	if err != nil {
		faults.Add(path, "%v", err)
	}
	return sc
}

// read reads a script, and no more of a file than one may have.
func read(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	i, err := f.Stat()
	switch {
	case err != nil:
		return "", err
	case !i.Mode().IsRegular():
		return "", fmt.Errorf("%s is no regular file", name)
	case i.Size() > maxSource:
		return "", fmt.Errorf("must have at most %d bytes, has %d", maxSource, i.Size())
	}
	b := make([]byte, i.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return "", err
	}
	return string(b), nil
}
