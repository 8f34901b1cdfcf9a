package v1alpha1

import (
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MetaRouter says what becomes of the calls to a host. Of several for one host the oldest
// counts.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:resource:categories=meltemi
// +kubebuilder:printcolumn:name=Host,type=string,JSONPath=`.spec.hosts[0]`
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name=Programmed,type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name=Acknowledged,type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Acknowledged")].status`
// +kubebuilder:printcolumn:name=Message,type=string,priority=1,JSONPath=`.status.conditions[?(@.status=="False")].message`
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
type MetaRouter struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec MetaRouterSpec `json:"spec"`
	// +optional
	Status Status `json:"status,omitempty"`
}

// MetaRouterList is a list of them.
//
// +kubebuilder:object:root=true
type MetaRouterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MetaRouter `json:"items"`
}

// Host is the name of a service.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
type Host string

// MetaRouterSpec is what becomes of the calls to a host.
//
// +kubebuilder:validation:XValidation:rule="has(self.routes) || has(self.localRateLimit) || has(self.globalRateLimit) || has(self.gateways) || has(self.authorization) || has(self.trafficPolicy) || has(self.telemetry) || has(self.routeDelivery) || has(self.outbound) || has(self.inbound)",message="says nothing: want routes, localRateLimit or globalRateLimit"
type MetaRouterSpec struct {
	// The service, as Istio names it: name.namespace.svc.cluster.local, or a host of a
	// ServiceEntry. A name without dots is that of a service in the object's namespace.
	//
	// +required
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1
	Hosts []Host `json:"hosts"`
	// Gateways that lead to the host, as namespace/name, or name in the object's own
	// namespace.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	// +listType=set
	Gateways []string `json:"gateways,omitempty"`
	// Namespaces whose proxies get the rules: ".", "*", or names. Default: all.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^([.*~]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$`
	// +kubebuilder:validation:XValidation:rule="self.size() == 1 || !self.exists(n, n == '*' || n == '~')",message="* and ~ must be alone"
	// +listType=set
	ExportTo []string `json:"exportTo,omitempty"`
	// The first that matches wins. What none matches has no route.
	//
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=512
	// +listType=atomic
	Routes []MetaRoute `json:"routes,omitempty"`
	// +optional
	LocalRateLimit *LocalRateLimit `json:"localRateLimit,omitempty"`
	// +optional
	GlobalRateLimit *GlobalRateLimit `json:"globalRateLimit,omitempty"`

	// What holds for all calls to the host. Meltemi's own field, as are those below.
	//
	// +optional
	TrafficPolicy *TrafficPolicy `json:"trafficPolicy,omitempty"`
	// Who may call what, in the words of Istio's AuthorizationPolicy.
	//
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Authorization []Authorization `json:"authorization,omitempty"`
	// +optional
	Telemetry *Telemetry `json:"telemetry,omitempty"`
	// How routes come to the proxies of clients and gateways: ECDS, by Istio within the
	// filter's configuration, or RDS, from the operator itself, which then knows which
	// proxies have accepted them. Default: ECDS.
	//
	// +optional
	RouteDelivery RouteDelivery `json:"routeDelivery,omitempty"`
	// Further fields of MetaProtocolProxy, for clients and gateways.
	//
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	Outbound *apiextensions.JSON `json:"outbound,omitempty"`
	// The same for servers.
	//
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	Inbound *apiextensions.JSON `json:"inbound,omitempty"`
}

// RouteDelivery is how routes come to proxies.
//
// +kubebuilder:validation:Enum=ECDS;RDS
type RouteDelivery string

// What it may be.
const (
	ECDS RouteDelivery = "ECDS"
	RDS  RouteDelivery = "RDS"
)

// MetaRoute is where calls go that match.
//
// +kubebuilder:validation:XValidation:rule="has(self.route) != has(self.directResponse)",message="want route or directResponse"
// +kubebuilder:validation:XValidation:rule="!has(self.mirrorPercentage) || has(self.mirror)",message="mirrorPercentage needs mirror"
type MetaRoute struct {
	// Name of the route in logs and metrics.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
	// Absent: all calls.
	//
	// +optional
	Match *MetaRouteMatch `json:"match,omitempty"`
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="self.size() == 1 || self.map(d, has(d.weight) ? d.weight : 0).sum() == 100",message="the weights must be 100 together"
	// +listType=atomic
	Route []MetaRouteDestination `json:"route,omitempty"`
	// Who gets copies of the calls.
	//
	// +optional
	Mirror *Destination `json:"mirror,omitempty"`
	// Of how many calls. Default: all.
	//
	// +optional
	MirrorPercentage *Percent `json:"mirrorPercentage,omitempty"`
	// Set in calls.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	RequestMutation []KeyValue `json:"requestMutation,omitempty"`
	// Set in answers.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	ResponseMutation []KeyValue `json:"responseMutation,omitempty"`

	// Further ones who get copies. Meltemi's own field, as are those below.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=15
	// +listType=atomic
	Mirrors []Mirror `json:"mirrors,omitempty"`
	// What else becomes of the attributes of calls and answers, before requestMutation
	// and responseMutation.
	//
	// +optional
	Headers *Headers `json:"headers,omitempty"`
	// How long a client waits for its answer. Default: the host's.
	//
	// +optional
	Timeout *Duration `json:"timeout,omitempty"`
	// When a call is sent again.
	//
	// +optional
	Retries *Retries `json:"retries,omitempty"`
	// When a call is sent to a second server, too. Needs idempotent.
	//
	// +optional
	Hedge *Hedge `json:"hedge,omitempty"`
	// The calls may be executed more than once.
	//
	// +optional
	Idempotent bool `json:"idempotent,omitempty"`
	// +optional
	Fault *Fault `json:"fault,omitempty"`
	// An answer of the proxy itself, instead of route.
	//
	// +optional
	DirectResponse *DirectResponse `json:"directResponse,omitempty"`
}

// MetaRouteMatch is fulfilled if all of it is.
type MetaRouteMatch struct {
	// What the attributes of a call must be.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=16
	Attributes map[string]StringMatch `json:"attributes,omitempty"`
	// Labels of the workload that calls. Meltemi's own field.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=16
	SourceLabels map[string]string `json:"sourceLabels,omitempty"`
}

// StringMatch is one of exact, prefix and regex. Without any of them, and with an empty
// exact, it is fulfilled if the attribute is there.
//
// +kubebuilder:validation:XValidation:rule="[has(self.exact), has(self.prefix), has(self.regex), has(self.present)].filter(x, x).size() <= 1",message="want one of exact, prefix, regex and present"
type StringMatch struct {
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Exact *string `json:"exact,omitempty"`
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Prefix *string `json:"prefix,omitempty"`
	// In the syntax of RE2, for the whole of the value.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="'x'.matches(self) in [true, false]",message="is no regular expression. Want present: true for any value"
	Regex *string `json:"regex,omitempty"`
	// The attribute must be there. Meltemi's own field.
	//
	// +optional
	// +kubebuilder:validation:Enum=true
	Present *bool `json:"present,omitempty"`
	// It is fulfilled if the rest is not. Meltemi's own field.
	//
	// +optional
	Invert bool `json:"invert,omitempty"`
}

// MetaRouteDestination is where a part of the calls goes.
type MetaRouteDestination struct {
	// +required
	Destination Destination `json:"destination"`
	// Of several: its share in percent.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Weight int32 `json:"weight,omitempty"`
}

// Destination is a service, or a part of it.
type Destination struct {
	// A service, as in hosts.
	//
	// +required
	Host Host `json:"host"`
	// Name of a subset in the service's DestinationRule.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[^|]*$`
	Subset string `json:"subset,omitempty"`
	// Default: the port that was called.
	//
	// +optional
	Port *PortSelector `json:"port,omitempty"`
}

// PortSelector is a port by its number.
type PortSelector struct {
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Number int32 `json:"number,omitempty"`
}

// Percent is a share.
//
// +kubebuilder:validation:XValidation:rule="self.value > 0.0 && self.value <= 100.0",message="must be more than 0 and at most 100",fieldPath=".value"
type Percent struct {
	// +required
	Value float64 `json:"value"`
}

// KeyValue is an attribute.
type KeyValue struct {
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=16384
	Key string `json:"key"`
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=16384
	Value string `json:"value"`
}

// Mirror is who gets copies of calls.
type Mirror struct {
	// +required
	Destination Destination `json:"destination"`
	// Of how many calls. Default: all.
	//
	// +optional
	Percentage *Percent `json:"percentage,omitempty"`
}

// Headers is what becomes of attributes.
type Headers struct {
	// +optional
	Request *HeaderOperations `json:"request,omitempty"`
	// +optional
	Response *HeaderOperations `json:"response,omitempty"`
}

// HeaderOperations are done in this order: remove, set, add.
type HeaderOperations struct {
	// Attributes that are taken out.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=16384
	// +listType=set
	Remove []string `json:"remove,omitempty"`
	// Attributes that get a value, whether they are there or not.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Set map[string]string `json:"set,omitempty"`
	// Attributes that get a value, behind the one that they have.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Add map[string]string `json:"add,omitempty"`
}

// Retries say when a call is sent again.
type Retries struct {
	// How often at most. 0: not at all, also of a route where trafficPolicy has retries.
	//
	// +required
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10
	Attempts int32 `json:"attempts"`
	// How long an attempt may take. Default: as long as the call.
	//
	// +optional
	PerTryTimeout *Duration `json:"perTryTimeout,omitempty"`
	// Conditions, with commas between them; default connect-failure,refused. Those of
	// RetryPolicy.retry_on.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=256
	RetryOn string `json:"retryOn,omitempty"`
	// The pause before the first one, at most. Default 25ms.
	//
	// +optional
	Backoff *Duration `json:"backoff,omitempty"`
}

// Hedge says when a call is sent to a second server, too.
//
// +kubebuilder:validation:XValidation:rule="has(self.delay) != has(self.percentile)",message="want delay or percentile"
type Hedge struct {
	// After so long.
	//
	// +optional
	Delay *Duration `json:"delay,omitempty"`
	// After the time within which so many of the last answers came: 50 to less than 100.
	//
	// +optional
	Percentile *float64 `json:"percentile,omitempty"`
}

// Fault is for trying what becomes of clients.
//
// +kubebuilder:validation:XValidation:rule="has(self.delay) || has(self.abort)",message="want delay or abort"
type Fault struct {
	// +optional
	Delay *Delay `json:"delay,omitempty"`
	// +optional
	Abort *Abort `json:"abort,omitempty"`
}

// Delay has calls wait.
type Delay struct {
	// +required
	FixedDelay Duration `json:"fixedDelay"`
	// Of how many calls. Default: all.
	//
	// +optional
	Percentage *Percent `json:"percentage,omitempty"`
}

// Abort answers calls with an error.
type Abort struct {
	DirectResponse `json:",inline"`
	// How many calls. Default: all.
	//
	// +optional
	Percentage *Percent `json:"percentage,omitempty"`
}

// DirectResponse is an answer of the proxy itself, in the protocol of the call.
type DirectResponse struct {
	// What kind of error it is.
	//
	// +optional
	// +kubebuilder:validation:Enum=UNSPECIFIED;ROUTE_NOT_FOUND;CLUSTER_NOT_FOUND;NO_HEALTHY_UPSTREAM;BAD_RESPONSE;OVER_LIMIT;BAD_REQUEST;TIMEOUT;CONNECT_FAILURE;UPSTREAM_RESET;DENIED
	Status string `json:"status,omitempty"`
	// The protocol's own code, in place of that of the status.
	//
	// +optional
	Code int32 `json:"code,omitempty"`
	// What it says. Default: the name of the status.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Body string `json:"body,omitempty"`
}

// GetRequest is what becomes of the attributes of calls.
func (h *Headers) GetRequest() *HeaderOperations {
	if h == nil {
		return nil
	}
	return h.Request
}

// GetResponse is what becomes of the attributes of answers.
func (h *Headers) GetResponse() *HeaderOperations {
	if h == nil {
		return nil
	}
	return h.Response
}
