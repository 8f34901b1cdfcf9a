package controlplane

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/validation/envoyfilter"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// always is what Istio warns of whatever an EnvoyFilter has.
const always = "EnvoyFilter exposes internal implementation details"

// TestIstioAcceptsWhatIsGenerated: Istio's own validation has nothing against
// any of the generator's golden files, not even a warning of an unknown field.
func TestIstioAcceptsWhatIsGenerated(t *testing.T) {
	files, err := filepath.Glob("../../../control/translate/envoyfilter/testdata/*.out.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
			for n := 0; ; n++ {
				var doc struct {
					Metadata struct{ Name string }
					Spec     networking.EnvoyFilter
				}
				switch err := d.Decode(&doc); {
				case errors.Is(err, io.EOF) && n > 0:
					return
				case err != nil:
					t.Fatal(err)
				}
				for _, fault := range validate(&doc.Spec) {
					t.Errorf("%s: %s", doc.Metadata.Name, fault)
				}
			}
		})
	}
}

// validate is what Istio has against an EnvoyFilter.
func validate(spec *networking.EnvoyFilter) (faults []string) {
	warning, err := envoyfilter.ValidateEnvoyFilter(config.Config{Spec: spec})
	if err != nil {
		faults = append(faults, err.Error())
	}
	if warning != nil {
		for line := range strings.Lines(warning.Error()) {
			if !strings.Contains(line, always) {
				faults = append(faults, "warning: "+line)
			}
		}
	}
	return faults
}
