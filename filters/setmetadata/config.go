package setmetadata

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	setmetadatav1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/set_metadata/v1alpha"
)

// maxEntries of one filter.
const maxEntries = 100

// entry is one frozen property to set.
type entry struct {
	name     string
	value    []byte
	format   route.Format // in place of value
	extract  *extraction  // nil: the value is set as it is
	action   action
	upstream bool
}

type action = routev1alpha.KeyValue_AppendAction

const (
	overwriteOrAdd = routev1alpha.KeyValue_OVERWRITE_IF_EXISTS_OR_ADD
	appendOrAdd    = routev1alpha.KeyValue_APPEND_IF_EXISTS_OR_ADD
	addIfAbsent    = routev1alpha.KeyValue_ADD_IF_ABSENT
	overwrite      = routev1alpha.KeyValue_OVERWRITE_IF_EXISTS
)

func parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(setmetadatav1alpha.SetMetadata)
	if err := fields.Unpack(config, m); err != nil {
		return nil, err
	}
	var faults fields.Faults
	switch n := len(m.GetEntries()); {
	case n == 0:
		faults.Add("entries", "required")
	case n > maxEntries:
		faults.Add("entries", "at most %d, has %d", maxEntries, n)
	}
	entries := make([]entry, len(m.GetEntries()))
	for i, from := range m.GetEntries() {
		entries[i].parse(from, env, fmt.Sprintf("entries[%d]", i), &faults)
	}
	return entries, faults.Err()
}

func (e *entry) parse(from *setmetadatav1alpha.Entry, env *filter.Env, path string, faults *fields.Faults) {
	*e = entry{name: from.GetName(), action: from.GetAppendAction(), upstream: from.GetUpstream()}
	sound := length(e.name, path+".name", 1, faults)
	if _, known := routev1alpha.KeyValue_AppendAction_name[int32(e.action)]; !known {
		faults.Add(path+".append_action", "unknown value %d", e.action)
	}
	switch from.GetSource().(type) {
	case *setmetadatav1alpha.Entry_Value:
		e.value = []byte(from.GetValue())
		sound = length(from.GetValue(), path+".value", 0, faults) && sound
	case *setmetadatav1alpha.Entry_Format:
		if length(from.GetFormat(), path+".format", 1, faults) {
			var err error
			if e.format, err = route.ParseFormat(from.GetFormat(), codecs.ClientToServer); err != nil {
				faults.Add(path+".format", "%v", err)
			} else if e.format.AsksRoute() {
				faults.Add(path+".format", "no route has been chosen yet")
			}
		}
	default:
		faults.Add(path+".format", "required, or value")
	}
	if x := from.GetExtract(); x != nil {
		e.extract = parseExtraction(x, path+".extract", faults)
	}
	if e.upstream && sound {
		if err := settable(env.Codecs, e.name, string(e.value)); err != nil {
			faults.Add(path+".upstream", "%v", err)
		}
	}
}

// length refuses texts that are too short or too long.
func length(s, path string, least int, faults *fields.Faults) (ok bool) {
	n := len(s)
	if ok = n >= least && n <= codecs.MaxText; !ok {
		faults.Add(path, "must have %d to %d bytes, has %d", least, codecs.MaxText, n)
	}
	return ok
}

// settable tells whether one of the codecs can set key to value in requests.
func settable(cs []codecs.Codec, key, value string) (err error) {
	for _, c := range cs {
		mutator, is := c.(codecs.Mutator)
		if !is {
			err = fmt.Errorf("the codec cannot change messages")
			continue
		}
		if err = mutator.CheckMutation(codecs.ClientToServer, key, value); err == nil {
			return nil
		}
	}
	return err
}
