// Package v1alpha1 has the objects by which users say what becomes of calls: Aeraki's
// MetaRouter and ApplicationProtocol, as they are on the wire, with further optional
// fields.
//
// What a schema can refuse it refuses. What only the codecs and filters know is told in
// an object's status.
//
// +kubebuilder:object:generate=true
// +groupName=metaprotocol.aeraki.io
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of the objects.
var GroupVersion = schema.GroupVersion{Group: "metaprotocol.aeraki.io", Version: "v1alpha1"}

// AddToScheme makes the objects known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &MetaRouter{}, &MetaRouterList{}, &ApplicationProtocol{}, &ApplicationProtocolList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
