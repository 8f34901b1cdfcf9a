// Package greeter is what the dubbo-go provider and consumer share: the
// interfaces, the objects they exchange and dubbo-go without its registries.
package greeter

import (
	"fmt"

	hessian "github.com/apache/dubbo-go-hessian2"
	"github.com/apache/dubbo-go-hessian2/java_exception"

	_ "dubbo.apache.org/dubbo-go/v3/cluster/cluster/failfast"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/cluster/failover"
	_ "dubbo.apache.org/dubbo-go/v3/cluster/loadbalance/random"
	_ "dubbo.apache.org/dubbo-go/v3/filter/accesslog"
	_ "dubbo.apache.org/dubbo-go/v3/filter/echo"
	_ "dubbo.apache.org/dubbo-go/v3/filter/exec_limit"
	_ "dubbo.apache.org/dubbo-go/v3/filter/generic"
	_ "dubbo.apache.org/dubbo-go/v3/filter/graceful_shutdown"
	_ "dubbo.apache.org/dubbo-go/v3/filter/token"
	_ "dubbo.apache.org/dubbo-go/v3/filter/tps"
	_ "dubbo.apache.org/dubbo-go/v3/protocol/dubbo"
	_ "dubbo.apache.org/dubbo-go/v3/proxy/proxy_factory"
)

// Interfaces that every provider exports. They have the same methods.
const (
	Interface = "org.meltemi.test.Greeter"
	Audit     = "org.meltemi.test.Audit"
)

// Person is org.meltemi.test.Person: nested, with a list and a map.
type Person struct {
	Name   string            `json:"name"`
	Age    int32             `json:"age"`
	Tags   []string          `json:"tags"`
	Labels map[string]string `json:"labels"`
	Friend *Person           `json:"friend"`
}

// JavaClassName implements hessian.POJO.
func (*Person) JavaClassName() string { return "org.meltemi.test.Person" }

// GreetingException is the checked exception org.meltemi.test.GreetingException.
type GreetingException struct {
	SerialVersionUID     int64
	DetailMessage        string
	SuppressedExceptions []java_exception.Throwabler
	StackTrace           []java_exception.StackTraceElement
	Cause                java_exception.Throwabler
	Code                 int32
}

// Error implements error.
func (e GreetingException) Error() string {
	return fmt.Sprintf("%s (code %d)", e.DetailMessage, e.Code)
}

// JavaClassName implements hessian.POJO.
func (GreetingException) JavaClassName() string { return "org.meltemi.test.GreetingException" }

// GetStackTrace implements java_exception.Throwabler.
func (e GreetingException) GetStackTrace() []java_exception.StackTraceElement { return e.StackTrace }

func init() {
	hessian.RegisterPOJO(&Person{})
	hessian.RegisterPOJO(&GreetingException{})
}
