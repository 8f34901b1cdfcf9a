// Package v1alpha1 has Aeraki's DubboAuthorizationPolicy, as it is on the wire, with a
// selector.
//
// +kubebuilder:object:generate=true
// +groupName=dubbo.aeraki.io
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	metaprotocol "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

// GroupVersion of the objects.
var GroupVersion = schema.GroupVersion{Group: "dubbo.aeraki.io", Version: "v1alpha1"}

// AddToScheme makes the objects known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &DubboAuthorizationPolicy{}, &DubboAuthorizationPolicyList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// DubboAuthorizationPolicy says who may call what of the Dubbo services of its namespace,
// or, in Istio's root namespace, of all.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:resource:categories=meltemi
// +kubebuilder:printcolumn:name=Action,type=string,JSONPath=`.spec.action`
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
type DubboAuthorizationPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec DubboAuthorizationPolicySpec `json:"spec,omitempty"`
	// +optional
	Status metaprotocol.Status `json:"status,omitempty"`
}

// DubboAuthorizationPolicyList is a list of them.
//
// +kubebuilder:object:root=true
type DubboAuthorizationPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DubboAuthorizationPolicy `json:"items"`
}

// DubboAuthorizationPolicySpec is a policy. What one with DENY matches is refused; then, if
// there is any with ALLOW, what none of them matches.
type DubboAuthorizationPolicySpec struct {
	// Which services: those whose selector has these labels. Absent: all.
	//
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`
	// Default ALLOW.
	//
	// +optional
	// +kubebuilder:validation:Enum=ALLOW;DENY
	Action string `json:"action,omitempty"`
	// One must match. Without any nothing does.
	//
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Rules []Rule `json:"rules,omitempty"`
}

// WorkloadSelector selects workloads.
type WorkloadSelector struct {
	// +optional
	// +kubebuilder:validation:MaxProperties=16
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
}

// Rule matches calls that one of from and one of to match.
type Rule struct {
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	From []From `json:"from,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	To []To `json:"to,omitempty"`
}

// From is who calls.
type From struct {
	// +required
	Source Source `json:"source"`
}

// Source is who calls. Values may begin or end with *, or be one.
type Source struct {
	// TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
	//
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
}

// To is what is called.
type To struct {
	// +required
	Operation Operation `json:"operation"`
}

// Operation is what is called. Values may begin or end with *, or be one.
type Operation struct {
	// +optional
	// +listType=atomic
	Interfaces []string `json:"interfaces,omitempty"`
	// +optional
	// +listType=atomic
	NotInterfaces []string `json:"notInterfaces,omitempty"`
	// +optional
	// +listType=atomic
	Methods []string `json:"methods,omitempty"`
	// +optional
	// +listType=atomic
	NotMethods []string `json:"notMethods,omitempty"`
}
