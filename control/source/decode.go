package source

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
)

// Decode fills the struct to which v points with the fields of a mapping by
// their yaml tags, and refuses all that v does not know. Fields are structs,
// pointers to structs, slices, maps of strings, strings, integers, booleans,
// and *yaml.Node for what is read later, nil for a null.
func Decode(n *yaml.Node, v any) Errors {
	var d decoder
	d.decode(n, "", reflect.ValueOf(v).Elem())
	return d.errs
}

type decoder struct{ errs Errors }

func (d *decoder) refuse(n *yaml.Node, path, format string, args ...any) {
	d.errs = append(d.errs, Errorf(n.Line, path, format, args...))
}

func (d *decoder) decode(n *yaml.Node, path string, v reflect.Value) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if v.Type() == reflect.TypeFor[*yaml.Node]() {
		if n.ShortTag() != "!!null" {
			v.Set(reflect.ValueOf(n))
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(n, path, v.Elem())
	case reflect.Struct:
		d.mapping(n, path, func(k, value *yaml.Node, at string) {
			for i := range v.NumField() {
				if v.Type().Field(i).Tag.Get("yaml") == k.Value {
					d.decode(value, at, v.Field(i))
					return
				}
			}
			d.refuse(k, at, "unknown field; there are: %s", strings.Join(names(v.Type()), ", "))
		})
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		d.mapping(n, path, func(k, value *yaml.Node, at string) {
			e := reflect.New(v.Type().Elem()).Elem()
			d.decode(value, at, e)
			v.SetMapIndex(reflect.ValueOf(k.Value), e)
		})
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.refuse(n, path, "want a list")
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, c := range n.Content {
			d.decode(c, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case reflect.String:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
			d.refuse(n, path, "want a string")
			return
		}
		v.SetString(n.Value)
	case reflect.Int:
		i, err := strconv.ParseInt(n.Value, 10, 32)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
			d.refuse(n, path, "want a number")
			return
		}
		v.SetInt(i)
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
			d.refuse(n, path, "want true or false")
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	default:
		panic("source: cannot decode into " + v.Type().String())
	}
}

func (d *decoder) mapping(n *yaml.Node, path string, each func(k, v *yaml.Node, at string)) {
	if n.Kind != yaml.MappingNode {
		d.refuse(n, path, "want an object")
		return
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		at := fault.Join(path, k.Value)
		if seen[k.Value] {
			d.refuse(k, at, "given twice")
			continue
		}
		seen[k.Value] = true
		each(k, n.Content[i+1], at)
	}
}

func names(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "" {
			names = append(names, name)
		}
	}
	return names
}
