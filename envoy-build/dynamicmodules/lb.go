package dynamicmodules

/*
#include "hooks.h"

// One host of a priority, as Envoy has it.
typedef struct {
  mt_buf address, region, zone, sub_zone, hash_key;
  uint32_t weight;
} mt_lb_host;

static void mt_lb_cluster(void* lb, mt_buf* name) { MT_CALL(lb_get_cluster_name)(lb, name); }
static size_t mt_lb_priorities(void* lb) { return MT_CALL(lb_get_priority_set_size)(lb); }
static size_t mt_lb_hosts(void* lb, uint32_t p) { return MT_CALL(lb_get_hosts_count)(lb, p); }
static size_t mt_lb_healthy_hosts(void* lb, uint32_t p) { return MT_CALL(lb_get_healthy_hosts_count)(lb, p); }
static void mt_lb_healthy_host(void* lb, uint32_t p, size_t i, mt_buf* address) {
  MT_CALL(lb_get_healthy_host_address)(lb, p, i, address);
}
static void mt_lb_get_host(void* lb, uint32_t p, size_t i, mt_lb_host* h) {
  static const char ns[] = "envoy.lb", key[] = "hash_key";
  MT_CALL(lb_get_host_address)(lb, p, i, &h->address);
  MT_CALL(lb_get_host_locality)(lb, p, i, &h->region, &h->zone, &h->sub_zone);
  MT_CALL(lb_get_host_metadata_string)
  (lb, p, i, (mt_buf){ns, sizeof ns - 1}, (mt_buf){key, sizeof key - 1}, &h->hash_key);
  h->weight = MT_CALL(lb_get_host_weight)(lb, p, i);
}
// Whether this Envoy has load balancers of modules.
static bool mt_lb_has(void) {
  return MT_CALL(lb_get_cluster_name) && MT_CALL(lb_get_priority_set_size) && MT_CALL(lb_get_hosts_count) &&
         MT_CALL(lb_get_healthy_hosts_count) && MT_CALL(lb_get_healthy_host_address) && MT_CALL(lb_get_host_address) &&
         MT_CALL(lb_get_host_locality) && MT_CALL(lb_get_host_metadata_string) && MT_CALL(lb_get_host_weight);
}
*/
import "C"

import (
	"sync"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/balancer"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// balancerTable is the load balancers of clusters that name us, by their ids: of each
// cluster one for each thread, which alone uses it.
type balancerTable struct {
	mu   sync.RWMutex
	last uint32
	m    map[uint32]*clusterBalancer
	// newest of a cluster on a thread: while one takes the place of another there are
	// two.
	newest map[clusterOn]*clusterBalancer
}

type clusterBalancer struct {
	balancer.Balancer
	of clusterOn
}

// clusterOn is a cluster on a thread, which is known by what it has of its own.
type clusterOn struct {
	thread  *C.mt_worker
	cluster string
}

func (t *balancerTable) add(of clusterOn) (id uint32, b *clusterBalancer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m, t.newest = map[uint32]*clusterBalancer{}, map[clusterOn]*clusterBalancer{}
	}
	t.last++
	b = &clusterBalancer{of: of}
	t.m[t.last], t.newest[of] = b, b
	return t.last, b
}

// get returns nil when there is none.
func (t *balancerTable) get(id uint32) *clusterBalancer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[id]
}

func (t *balancerTable) remove(id uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.m[id]; b != nil {
		delete(t.m, id)
		if t.newest[b.of] == b {
			delete(t.newest, b.of)
		}
	}
}

// on returns a cluster's on a thread, nil when there is none.
func (t *balancerTable) on(of clusterOn) *clusterBalancer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.newest[of]
}

// ClusterMembers implements host.Worker.
func (w *worker) ClusterMembers(cluster string) *host.Members {
	if b := balancers.on(clusterOn{w.c, cluster}); b != nil {
		return b.Members()
	}
	return nil
}

//export mtLBConfig
func mtLBConfig(name *C.char, nameLen C.size_t, raw *C.char, rawLen C.size_t) (ok C.bool) {
	defer func() {
		if r := recover(); r != nil {
			panics.Caught("loading a load balancer's configuration", r)
			ok = false
		}
	}()
	setUp(concurrency())
	if err := config.LoadHosts(C.GoStringN(name, C.int(nameLen)), C.GoBytes(unsafe.Pointer(raw), C.int(rawLen))); err != nil {
		logf(host.Error, "meltemi: load balancer refused: %v", err)
		return false
	}
	if !bool(C.mt_lb_has()) {
		logf(host.Error, "meltemi: load balancer refused: this Envoy does not tell modules of hosts")
		return false
	}
	return true
}

//export mtLBNew
func mtLBNew(envoy unsafe.Pointer, thread *C.mt_worker) (id C.uint32_t) {
	defer func() {
		if r := recover(); r != nil {
			panics.Caught("making a load balancer", r)
			id = 0
		}
	}()
	var name C.mt_buf
	C.mt_lb_cluster(envoy, &name)
	added, b := balancers.add(clusterOn{thread, text(name)})
	if hosts, healthy := told(envoy); len(hosts) > 0 {
		b.Update(hosts, healthy)
	}
	return C.uint32_t(added)
}

//export mtLBDestroy
func mtLBDestroy(id C.uint32_t) {
	defer barrier("dropping a load balancer")
	balancers.remove(uint32(id))
}

//export mtLBUpdate
func mtLBUpdate(id C.uint32_t, envoy unsafe.Pointer) {
	defer barrier("taking a cluster's hosts")
	if b := balancers.get(uint32(id)); b != nil {
		b.Update(told(envoy))
	}
}

//export mtLBChoose
func mtLBChoose(id C.uint32_t, wanted *C.char, n C.size_t, priority, index *C.uint32_t) (ok C.bool) {
	defer func() {
		if r := recover(); r != nil {
			panics.Caught("choosing a host", r)
			ok = false
		}
	}()
	b := balancers.get(uint32(id))
	if b == nil {
		return false
	}
	p, i, found := b.Choose(unsafe.Slice((*byte)(unsafe.Pointer(wanted)), int(n)))
	*priority, *index = C.uint32_t(p), C.uint32_t(i)
	return C.bool(found)
}

// told is what Envoy tells of a cluster's hosts, and which are healthy.
func told(envoy unsafe.Pointer) (hosts []host.Member, healthy [][]string) {
	for p := range C.uint32_t(C.mt_lb_priorities(envoy)) {
		for i := range C.mt_lb_hosts(envoy, p) {
			var h C.mt_lb_host
			C.mt_lb_get_host(envoy, p, i, &h)
			hosts = append(hosts, host.Member{
				Address: text(h.address), HashKey: text(h.hash_key), Weight: uint32(h.weight), Priority: uint32(p),
				Region: text(h.region), Zone: text(h.zone), SubZone: text(h.sub_zone),
			})
		}
		var addresses []string
		for i := range C.mt_lb_healthy_hosts(envoy, p) {
			var address C.mt_buf
			C.mt_lb_healthy_host(envoy, p, i, &address)
			addresses = append(addresses, text(address))
		}
		healthy = append(healthy, addresses)
	}
	return hosts, healthy
}
