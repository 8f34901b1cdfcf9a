package filter

// Pools returns how many pools the configurations of the first worker know.
func (mod *Module) Pools() (n int) {
	for _, cs := range mod.shards[0].configs {
		n += len(cs.pools)
	}
	return n
}
