package v1alpha1

import (
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ApplicationProtocol says which codec a protocol has that ports name, as in
// tcp-metaprotocol-PROTOCOL. A protocol that no object names has the codec
// aeraki.meta_protocol.codec.PROTOCOL, if there is one.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:resource:scope=Cluster,categories=meltemi
// +kubebuilder:printcolumn:name=Protocol,type=string,JSONPath=`.spec.protocol`
// +kubebuilder:printcolumn:name=Codec,type=string,JSONPath=`.spec.codec`
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
type ApplicationProtocol struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ApplicationProtocolSpec `json:"spec"`
	// +optional
	Status Status `json:"status,omitempty"`
}

// ApplicationProtocolSpec is what is said of a protocol.
type ApplicationProtocolSpec struct {
	// Name of the protocol in the names of ports. Of several objects with one name the
	// oldest counts.
	//
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_.]+$`
	Protocol string `json:"protocol"`
	// Name of the codec, such as aeraki.meta_protocol.codec.dubbo.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Codec string `json:"codec"`
	// Options of the codec: its message, with @type. Meltemi's own field.
	//
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Type=object
	CodecConfig *apiextensions.JSON `json:"codecConfig,omitempty"`
}

// ApplicationProtocolList is a list of them.
//
// +kubebuilder:object:root=true
type ApplicationProtocolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ApplicationProtocol `json:"items"`
}

// Status is what has become of an object.
type Status struct {
	// Accepted: nothing is wrong with the object. Programmed: what proxies need is
	// written. The message of a False one names the field. Acknowledged, of routes by
	// RDS: the proxies that ask for them have accepted the last version; the message of
	// a False one says who refuses it, and why.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// The types of conditions.
const (
	Accepted     = "Accepted"
	Programmed   = "Programmed"
	Acknowledged = "Acknowledged"
)
