package v1alpha1

// LocalRateLimit bounds the calls that each server gets.
//
// +kubebuilder:validation:XValidation:rule="has(self.tokenBucket) || has(self.conditions)",message="want tokenBucket or conditions"
type LocalRateLimit struct {
	// For calls that no condition matches. Absent: they are not bounded.
	//
	// +optional
	TokenBucket *TokenBucket `json:"tokenBucket,omitempty"`
	// The first that matches decides.
	//
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Conditions []Condition `json:"conditions,omitempty"`
}

// TokenBucket is full at first. A call takes a token.
type TokenBucket struct {
	// +required
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	MaxTokens int64 `json:"maxTokens"`
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	TokensPerFill int64 `json:"tokensPerFill,omitempty"`
	// At least 1ms.
	//
	// +required
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1ms')",message="must be at least 1ms"
	FillInterval Duration `json:"fillInterval"`
}

// Condition is a bucket of its own for some calls.
type Condition struct {
	// +required
	Match MetaRouteMatch `json:"match"`
	// +required
	TokenBucket TokenBucket `json:"tokenBucket"`
}

// GlobalRateLimit has the servers' proxies ask a rate limit service.
type GlobalRateLimit struct {
	// Domain at the service.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Domain string `json:"domain"`
	// Which calls. Absent: all.
	//
	// +optional
	Match *MetaRouteMatch `json:"match,omitempty"`
	// How long to wait for the service. Default 20ms.
	//
	// +optional
	RequestTimeout *Duration `json:"requestTimeout,omitempty"`
	// Refuse calls when the service fails.
	//
	// +optional
	DenyOnFail bool `json:"denyOnFail,omitempty"`
	// The service's cluster in Envoy, such as
	// outbound|8081||ratelimit.istio-system.svc.cluster.local.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	RateLimitService string `json:"rateLimitService"`
	// +required
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	Descriptors []Descriptor `json:"descriptors"`
}

// Descriptor is what the service is told of a call.
type Descriptor struct {
	// The attribute whose value it is told.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Property string `json:"property"`
	// The key under which.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	DescriptorKey string `json:"descriptorKey"`
}

// TrafficPolicy is what holds for all calls to the host.
type TrafficPolicy struct {
	// How long a client waits for its answer. Default 15s.
	//
	// +optional
	Timeout *Duration `json:"timeout,omitempty"`
	// Of routes that have none.
	//
	// +optional
	Retries *Retries `json:"retries,omitempty"`
	// Bounds of what is under way from each proxy to each destination.
	//
	// +optional
	CircuitBreakers *CircuitBreakers `json:"circuitBreakers,omitempty"`
	// Servers that fail are left out for a while.
	//
	// +optional
	OutlierDetection *OutlierDetection `json:"outlierDetection,omitempty"`
	// How many calls may be sent again.
	//
	// +optional
	RetryBudget *RetryBudget `json:"retryBudget,omitempty"`
}

// CircuitBreakers bound what is under way.
type CircuitBreakers struct {
	// +optional
	// +kubebuilder:validation:Minimum=0
	MaxRequests *int32 `json:"maxRequests,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	MaxPendingRequests *int32 `json:"maxPendingRequests,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=1
	MaxConnections *int32 `json:"maxConnections,omitempty"`
}

// OutlierDetection leaves servers out.
type OutlierDetection struct {
	// Failures in a row. Default 5.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	ConsecutiveErrors *int32 `json:"consecutiveErrors,omitempty"`
	// Default 10s.
	//
	// +optional
	Interval *Duration `json:"interval,omitempty"`
	// Default 30s.
	//
	// +optional
	BaseEjectionTime *Duration `json:"baseEjectionTime,omitempty"`
	// Default 10.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	MaxEjectionPercent *int32 `json:"maxEjectionPercent,omitempty"`
}

// RetryBudget bounds retries.
type RetryBudget struct {
	// In relation to the calls of the last 10s. Default 20.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent *int32 `json:"percent,omitempty"`
	// That are allowed besides. Default 10.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	MinRetriesPerSecond *int32 `json:"minRetriesPerSecond,omitempty"`
}

// Telemetry is what is told of calls.
type Telemetry struct {
	// Calls are counted as Istio's standard metrics. Default true.
	//
	// +optional
	IstioStats *bool `json:"istioStats,omitempty"`
	// Calls have lines in the log of the proxy, if the mesh has one. Default true.
	//
	// +optional
	AccessLog *bool `json:"accessLog,omitempty"`
	// Calls are traced, if the mesh has tracing. Default true.
	//
	// +optional
	Tracing *bool `json:"tracing,omitempty"`
}

// Authorization is one policy.
type Authorization struct {
	// Name of the policy in logs. Default: its number.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
	// Default ALLOW.
	//
	// +optional
	// +kubebuilder:validation:Enum=ALLOW;DENY;AUDIT
	Action string `json:"action,omitempty"`
	// It is only counted.
	//
	// +optional
	DryRun bool `json:"dryRun,omitempty"`
	// One must match. Without any nothing does.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Rules []AuthorizationRule `json:"rules,omitempty"`
}

// AuthorizationRule matches calls that one of from, one of to and all of when match.
type AuthorizationRule struct {
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	From []From `json:"from,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	To []To `json:"to,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	When []When `json:"when,omitempty"`
}

// From is who calls.
type From struct {
	// +required
	Source Source `json:"source"`
}

// Source is who calls.
type Source struct {
	// +optional
	// +listType=atomic
	Principals []string `json:"principals,omitempty"`
	// +optional
	// +listType=atomic
	NotPrincipals []string `json:"notPrincipals,omitempty"`
	// +optional
	// +listType=atomic
	Namespaces []string `json:"namespaces,omitempty"`
	// +optional
	// +listType=atomic
	NotNamespaces []string `json:"notNamespaces,omitempty"`
	// +optional
	// +listType=atomic
	IPBlocks []string `json:"ipBlocks,omitempty"`
	// +optional
	// +listType=atomic
	NotIPBlocks []string `json:"notIpBlocks,omitempty"`
	// +optional
	// +listType=atomic
	RemoteIPBlocks []string `json:"remoteIpBlocks,omitempty"`
	// +optional
	// +listType=atomic
	NotRemoteIPBlocks []string `json:"notRemoteIpBlocks,omitempty"`
}

// To is what is called.
type To struct {
	// +required
	Operation Operation `json:"operation"`
}

// Operation is what is called.
type Operation struct {
	// +optional
	// +listType=atomic
	Methods []string `json:"methods,omitempty"`
	// +optional
	// +listType=atomic
	NotMethods []string `json:"notMethods,omitempty"`
	// /service/method.
	//
	// +optional
	// +listType=atomic
	Paths []string `json:"paths,omitempty"`
	// +optional
	// +listType=atomic
	NotPaths []string `json:"notPaths,omitempty"`
	// +optional
	// +listType=atomic
	Ports []string `json:"ports,omitempty"`
	// +optional
	// +listType=atomic
	NotPorts []string `json:"notPorts,omitempty"`
}

// When is a further condition.
type When struct {
	// +required
	Key string `json:"key"`
	// +optional
	// +listType=atomic
	Values []string `json:"values,omitempty"`
	// +optional
	// +listType=atomic
	NotValues []string `json:"notValues,omitempty"`
}
