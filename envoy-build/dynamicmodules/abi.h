// What Envoy's dynamic-modules ABI offers that Meltemi uses. Every import is
// weak: a host that lacks one still loads the module, and the pointer is NULL.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MT_WEAK __attribute__((weak))
#define MT_CALL(name) envoy_dynamic_module_callback_##name

// A stretch of Envoy's or our memory; Envoy passes it by value.
typedef struct {
  const char* ptr;
  size_t length;
} mt_buf;

MT_WEAK void MT_CALL(log)(int level, mt_buf);
MT_WEAK bool MT_CALL(log_enabled)(int level);
MT_WEAK uint32_t MT_CALL(get_concurrency)(void);
MT_WEAK bool MT_CALL(is_validation_mode)(void);

MT_WEAK int MT_CALL(network_filter_config_define_counter)(void* config, mt_buf name, size_t* id);
MT_WEAK int MT_CALL(network_filter_config_define_gauge)(void* config, mt_buf name, size_t* id);
MT_WEAK int MT_CALL(network_filter_config_define_histogram)(void* config, mt_buf name, size_t* id);
MT_WEAK void* MT_CALL(network_filter_config_scheduler_new)(void* config);
MT_WEAK void MT_CALL(network_filter_config_scheduler_commit)(void* scheduler, uint64_t event);
MT_WEAK void MT_CALL(network_filter_config_scheduler_delete)(void* scheduler);

MT_WEAK uint32_t MT_CALL(network_filter_get_worker_index)(void* filter);
MT_WEAK size_t MT_CALL(network_filter_get_read_buffer_chunks_size)(void* filter);
MT_WEAK bool MT_CALL(network_filter_get_read_buffer_chunks)(void* filter, mt_buf*);
MT_WEAK bool MT_CALL(network_filter_drain_read_buffer)(void* filter, size_t);
MT_WEAK size_t MT_CALL(network_filter_get_write_buffer_chunks_size)(void* filter);
MT_WEAK bool MT_CALL(network_filter_get_write_buffer_chunks)(void* filter, mt_buf*);
MT_WEAK bool MT_CALL(network_filter_drain_write_buffer)(void* filter, size_t);
MT_WEAK void MT_CALL(network_filter_inject_read_data)(void* filter, mt_buf, bool end);
MT_WEAK void MT_CALL(network_filter_inject_write_data)(void* filter, mt_buf, bool end);
MT_WEAK void MT_CALL(network_filter_continue_reading)(void* filter);
MT_WEAK void MT_CALL(network_filter_close)(void* filter, int type);
MT_WEAK void MT_CALL(network_filter_enable_half_close)(void* filter, bool);
MT_WEAK int MT_CALL(network_filter_read_disable)(void* filter, bool);
MT_WEAK bool MT_CALL(network_filter_read_enabled)(void* filter);
MT_WEAK uint32_t MT_CALL(network_filter_get_buffer_limit)(void* filter);
MT_WEAK void MT_CALL(network_filter_set_buffer_limits)(void* filter, uint32_t limit);
MT_WEAK bool MT_CALL(network_filter_above_high_watermark)(void* filter);
MT_WEAK uint64_t MT_CALL(network_filter_get_connection_id)(void* filter);
MT_WEAK bool MT_CALL(network_filter_get_remote_address)(void* filter, mt_buf*, uint32_t* port);
MT_WEAK bool MT_CALL(network_filter_get_local_address)(void* filter, mt_buf*, uint32_t* port);
MT_WEAK bool MT_CALL(network_filter_get_direct_remote_address)(void* filter, mt_buf*, uint32_t* port);
MT_WEAK bool MT_CALL(network_filter_is_ssl)(void* filter);
MT_WEAK bool MT_CALL(network_filter_get_requested_server_name)(void* filter, mt_buf*);
MT_WEAK size_t MT_CALL(network_filter_get_ssl_uri_sans_size)(void* filter);
MT_WEAK bool MT_CALL(network_filter_get_ssl_uri_sans)(void* filter, mt_buf*);
MT_WEAK size_t MT_CALL(network_filter_get_ssl_dns_sans_size)(void* filter);
MT_WEAK bool MT_CALL(network_filter_get_ssl_dns_sans)(void* filter, mt_buf*);
MT_WEAK bool MT_CALL(network_filter_get_ssl_subject)(void* filter, mt_buf*);
MT_WEAK bool MT_CALL(network_set_filter_state_typed)(void* filter, mt_buf key, mt_buf value);
MT_WEAK bool MT_CALL(network_get_filter_state_typed)(void* filter, mt_buf key, mt_buf* value);
MT_WEAK bool MT_CALL(network_get_dynamic_metadata_string)(void* filter, mt_buf ns, mt_buf key, mt_buf* value);
MT_WEAK bool MT_CALL(network_filter_get_cluster_host_count)(void* filter, mt_buf cluster, uint32_t priority,
                                                           size_t* total, size_t* healthy, size_t* degraded);
MT_WEAK bool MT_CALL(network_filter_has_upstream_host)(void* filter);
MT_WEAK bool MT_CALL(network_filter_get_upstream_host_address)(void* filter, mt_buf*, uint32_t* port);
MT_WEAK bool MT_CALL(network_filter_get_attribute_int)(void* filter, int attribute, uint64_t*); // from 1.39
MT_WEAK bool MT_CALL(network_filter_get_attribute_bool)(void* filter, int attribute, bool*);    // from 1.39
MT_WEAK bool MT_CALL(network_filter_get_attribute_string)(void* filter, int attribute, mt_buf*); // from 1.39
MT_WEAK int MT_CALL(network_filter_increment_counter)(void* filter, size_t id, uint64_t n);
MT_WEAK int MT_CALL(network_filter_increment_gauge)(void* filter, size_t id, uint64_t n);
MT_WEAK int MT_CALL(network_filter_decrement_gauge)(void* filter, size_t id, uint64_t n);
MT_WEAK int MT_CALL(network_filter_record_histogram_value)(void* filter, size_t id, uint64_t value);
MT_WEAK void* MT_CALL(network_filter_scheduler_new)(void* filter);
MT_WEAK void MT_CALL(network_filter_scheduler_commit)(void* scheduler, uint64_t event);
MT_WEAK void MT_CALL(network_filter_scheduler_delete)(void* scheduler);

MT_WEAK void MT_CALL(lb_get_cluster_name)(void* lb, mt_buf*);
MT_WEAK size_t MT_CALL(lb_get_priority_set_size)(void* lb);
MT_WEAK size_t MT_CALL(lb_get_hosts_count)(void* lb, uint32_t priority);
MT_WEAK size_t MT_CALL(lb_get_healthy_hosts_count)(void* lb, uint32_t priority);
MT_WEAK bool MT_CALL(lb_get_healthy_host_address)(void* lb, uint32_t priority, size_t i, mt_buf*);
MT_WEAK bool MT_CALL(lb_get_host_address)(void* lb, uint32_t priority, size_t i, mt_buf*);
MT_WEAK uint32_t MT_CALL(lb_get_host_weight)(void* lb, uint32_t priority, size_t i);
MT_WEAK bool MT_CALL(lb_get_host_locality)(void* lb, uint32_t priority, size_t i, mt_buf* region, mt_buf* zone, mt_buf* sub_zone);
MT_WEAK bool MT_CALL(lb_get_host_metadata_string)(void* lb, uint32_t priority, size_t i, mt_buf ns, mt_buf key, mt_buf*);
