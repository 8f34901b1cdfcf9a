package envoyfilter

import (
	"bytes"
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// YAML is a file of EnvoyFilters for kubectl, with all keys sorted.
func YAML(filters []*Filter) ([]byte, error) {
	var b bytes.Buffer
	for i, f := range filters {
		if i > 0 {
			b.WriteString("---\n")
		}
		doc, err := f.yaml()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		b.Write(doc)
	}
	return b.Bytes(), nil
}

func (f *Filter) yaml() ([]byte, error) {
	raw, err := protojson.Marshal(f.Spec)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var spec any
	if err := d.Decode(&spec); err != nil {
		return nil, err
	}
	meta := object{"name": f.Name, "namespace": f.Namespace, "labels": f.Labels}
	if len(f.Annotations) > 0 {
		meta["annotations"] = f.Annotations
	}
	return encode(object{
		"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
		"metadata": meta, "spec": plain(spec),
	})
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	err := e.Close()
	return b.Bytes(), err
}

// plain turns JSON's numbers into those that YAML writes as they were.
func plain(v any) any {
	switch v := v.(type) {
	case object:
		for k, e := range v {
			v[k] = plain(e)
		}
	case []any:
		for i, e := range v {
			v[i] = plain(e)
		}
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		f, _ := v.Float64()
		return f
	}
	return v
}
