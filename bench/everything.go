package main

// everythingTarget is Meltemi with policies, guards and telemetry at once: a timeout,
// retries, a circuit breaker for each method, a local limit, access control by 100
// policies, 1,000 routes, of which the last is the one and changes the request, metrics of
// methods and those of Istio, an access log in JSON and spans of one request in a hundred.
const everythingTarget = "meltemi-everything"

// moreTarget is all that policiesTarget, guardsTarget and telemetryTarget are: hedging,
// hosts by a hash, a watch on outliers, faults for nobody and properties that are set come
// with it.
const moreTarget = "meltemi-more"

// everything are its scenarios: it may cost as much as forwarding blindly does.
var everything = []scenario{
	{
		name: "everything", conns: 16, outstanding: 1,
		targets: []string{"tcp_proxy", "meltemi", everythingTarget, moreTarget}, goals: []goal{{everythingTarget, "tcp_proxy", 1.00}},
	},
	{
		name: "everything-200x1", conns: 200, outstanding: 1,
		targets: []string{"tcp_proxy", "meltemi", everythingTarget, moreTarget}, goals: []goal{{everythingTarget, "tcp_proxy", 1.00}},
	},
}
