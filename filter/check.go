package filter

import "github.com/meltemi-mesh/meltemi/filter/host"

// Check loads a configuration as a host would, with the codecs and filters that
// the program links, and forgets it again. A returned error is a *config.Error.
func Check(raw []byte) error {
	c, err := NewModule().NewConfig(checking{}, raw)
	if err == nil {
		c.Destroy()
	}
	return err
}

// checking is the host of a configuration that is only checked.
type checking struct{}

func (checking) DefineCounter(string) (host.MetricID, error)   { return 0, nil }
func (checking) DefineGauge(string) (host.MetricID, error)     { return 0, nil }
func (checking) DefineHistogram(string) (host.MetricID, error) { return 0, nil }
func (checking) Logf(host.Level, string, ...any)               {}
