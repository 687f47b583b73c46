package bench

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"vswitch/internal/lab"
	"vswitch/internal/lab/crowd"
)

//go:embed scenarios.yaml
var defaultScenarios []byte

// Topology is where client and server are.
type Topology string

const (
	// SameNode: two pods of one node.
	SameNode Topology = "same-node"
	// TwoNodes: a pod on each of two nodes that one cable joins.
	TwoNodes Topology = "two-nodes"
	// Egress: a pod, and a server on a machine outside.
	Egress Topology = "egress"
	// NodePort: a client on a machine outside, and a pod behind a node's port.
	NodePort Topology = "node-port"
	// ClusterIP: two pods of one node, the server behind a service address.
	ClusterIP Topology = "cluster-ip"
	// RootlessOut: a namespace of an ordinary user, and a server on its host.
	RootlessOut Topology = "rootless-out"
	// RootlessIn: a client on the host, and a server in the namespace, behind a port of
	// the host.
	RootlessIn Topology = "rootless-in"
	// Kubernetes: two pods of one node of a large cluster, the server behind a service
	// address.
	Kubernetes Topology = "kubernetes"
	// Simulated: a node of a large cluster, fed by a stand-in of the API server.
	Simulated Topology = "simulated"
	// Idle: a node with many pods and no traffic.
	Idle Topology = "idle"
	// Attach: a node on which pods are made and deleted.
	Attach Topology = "attach"
	// InMemory: no network at all, only code.
	InMemory Topology = "in-memory"
)

var topologies = []Topology{SameNode, TwoNodes, Egress, NodePort, ClusterIP, RootlessOut, RootlessIn, Kubernetes, Simulated, Idle, Attach, InMemory}

// large reports whether it is a cluster of a size.
func (t Topology) large() bool { return t == Kubernetes || t == Simulated }

// Scenario is one row.
type Scenario struct {
	// Name is unique; by convention its parameters, with slashes: same-node/tcp/1.
	Name     string   `json:"name"`
	Topology Topology `json:"topology"`
	// Underlay is how packets cross between two nodes: "wire", in wire size, or
	// "full", with every offload of the virtual link on. Two nodes only.
	Underlay string `json:"underlay,omitempty"`
	// Subject and Baseline are systems. NoBaseline: the figure is judged itself.
	Subject  string `json:"subject"`
	Baseline string `json:"baseline"`
	Load     Load   `json:"load"`
	// Metric of the load that the row reports; empty: the load's first.
	Metric string `json:"metric,omitempty"`
	// Also are further rows, taken from the same measurements.
	Also []Also `json:"also,omitempty"`
	// Duration of one measurement.
	Duration Duration `json:"duration"`
	// MTUBytes of the pods, on both sides; 0: 1500 on one node, and across nodes
	// what VXLAN leaves of the underlay's 1500.
	MTUBytes int `json:"mtu,omitempty"`
	// Pods of an idle node, or of the real one of a cluster; 0: defaultIdlePods, localPods.
	Pods int `json:"pods,omitempty"`
	// Cluster is how large a Kubernetes cluster is.
	Cluster crowd.Size `json:"cluster,omitzero"`
	// OnDemand leaves the scenario out unless it is asked for by name.
	OnDemand bool `json:"onDemand,omitempty"`
	// Services on the nodes besides the one asked, with servicesEndpoints each.
	Services int `json:"services,omitempty"`
	// Goal for the ratio, subject to baseline, or for the figure itself where
	// there is no baseline; 0: none.
	Goal float64 `json:"goal,omitempty"`
}

// NoBaseline in place of a baseline: there is nothing to compare with.
const NoBaseline = "none"

// Also is another metric of a scenario, as a row of its own.
type Also struct {
	Name   string  `json:"name"`
	Metric string  `json:"metric"`
	Goal   float64 `json:"goal,omitempty"`
}

// compared reports whether there is a baseline.
func (s *Scenario) compared() bool { return s.Baseline != NoBaseline }

// Duration is a time.Duration that YAML writes as "3s".
type Duration time.Duration

func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is a string such as \"3s\": %w", err)
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

const (
	// underlayMTU of the two nodes' link, as an Ethernet has it.
	underlayMTU = 1500
	// vxlanOverhead over IPv4: IP 20, UDP 8, VXLAN 8 (RFC 7348 section 5), Ethernet 14.
	vxlanOverhead = 50
)

// file is a scenario file.
type file struct {
	// Defaults fill what a scenario leaves out.
	Defaults struct {
		Subject  string   `json:"subject"`
		Duration Duration `json:"duration"`
	} `json:"defaults"`
	Scenarios []Scenario `json:"scenarios"`
}

// Defaults are the scenarios that vswitch is judged by.
func Defaults() ([]Scenario, error) { return Parse(defaultScenarios) }

// Parse reads a scenario file in YAML. Unknown keys are errors.
func Parse(b []byte) ([]Scenario, error) {
	var f file
	if err := yaml.UnmarshalStrict(b, &f); err != nil {
		return nil, fmt.Errorf("bench: scenario file: %w", err)
	}
	if len(f.Scenarios) == 0 {
		return nil, errors.New("bench: scenario file: no scenarios")
	}
	seen := map[string]bool{}
	for i := range f.Scenarios {
		s := &f.Scenarios[i]
		if s.Subject == "" {
			s.Subject = f.Defaults.Subject
		}
		if s.Duration == 0 {
			s.Duration = f.Defaults.Duration
		}
		if err := s.validate(); err != nil {
			return nil, fmt.Errorf("bench: scenario %d, %q: %w", i+1, s.Name, err)
		}
		for _, name := range s.rowNames() {
			if seen[name] {
				return nil, fmt.Errorf("bench: two rows are named %q", name)
			}
			seen[name] = true
		}
	}
	return f.Scenarios, nil
}

func (s *Scenario) validate() error {
	switch {
	case s.Name == "":
		return errors.New("it has no name")
	case !slices.Contains(topologies, s.Topology):
		return fmt.Errorf("topology %q is none of %v", s.Topology, topologies)
	case s.Topology != TwoNodes && s.Underlay != "":
		return errors.New("underlay is for two nodes")
	case s.Topology == TwoNodes && s.Underlay != lab.OffloadWire.String() && s.Underlay != lab.OffloadFull.String():
		return fmt.Errorf("underlay %q is none of wire, full", s.Underlay)
	case s.Duration <= 0:
		return errors.New("its duration is missing or not positive")
	case s.MTUBytes != 0 && (s.MTUBytes < 576 || s.MTUBytes > 65535):
		return fmt.Errorf("mtu %d is not within 576..65535", s.MTUBytes)
	case s.Goal < 0:
		return fmt.Errorf("goal %v is negative", s.Goal)
	case s.Pods < 0 || s.Pods > 200:
		return fmt.Errorf("%d pods are not within 1..200", s.Pods)
	case s.Pods > 0 && s.Topology != Idle && s.Topology != Kubernetes:
		return errors.New("a number of pods is for topologies idle and kubernetes")
	case s.Cluster != crowd.Size{} && !s.Topology.large():
		return errors.New("a cluster's size is for topologies kubernetes and simulated")
	case s.Services < 0 || s.Services > 30000:
		return fmt.Errorf("%d services are not within 0..30000", s.Services)
	case s.Services > 0 && s.Topology != ClusterIP:
		return errors.New("a number of services is for topology cluster-ip")
	}
	for _, side := range []struct{ what, name string }{{"subject", s.Subject}, {"baseline", s.Baseline}} {
		if side.what == "baseline" && side.name == NoBaseline {
			continue
		}
		sys, ok := systems[side.name]
		if !ok {
			return fmt.Errorf("%s %q is none of %s", side.what, side.name, strings.Join(systemNames(), ", "))
		}
		if !slices.Contains(sys.topologies, s.Topology) {
			return fmt.Errorf("%s %s has no topology %s", side.what, side.name, s.Topology)
		}
	}
	if s.MTUBytes == 0 {
		s.MTUBytes = underlayMTU
		if s.Topology == TwoNodes {
			s.MTUBytes -= vxlanOverhead
		}
	}
	switch {
	case s.Pods != 0:
	case s.Topology == Idle:
		s.Pods = defaultIdlePods
	case s.Topology == Kubernetes:
		s.Pods = localPods
	}
	if s.Topology.large() {
		if err := s.Cluster.Validate(); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	if err := s.Load.validate(s.Topology); err != nil {
		return err
	}
	if s.Metric == "" {
		s.Metric = loadKinds[s.Load.Kind].metrics[0].name
	}
	for _, m := range append([]Also{{Name: s.Name, Metric: s.Metric}}, s.Also...) {
		if _, err := s.Load.metric(m.Metric); err != nil {
			return err
		}
		if m.Name == "" {
			return fmt.Errorf("its row of metric %s has no name", m.Metric)
		}
		if m.Goal < 0 {
			return fmt.Errorf("goal %v is negative", m.Goal)
		}
	}
	return nil
}

// defaultIdlePods is what an ordinary Kubernetes node is full with, nearly.
const defaultIdlePods = 100

// rowNames are the names of the rows a scenario yields.
func (s *Scenario) rowNames() []string {
	names := []string{s.Name}
	for _, a := range s.Also {
		names = append(names, a.Name)
	}
	return names
}

// metrics are what its rows report.
func (s *Scenario) metrics() []string {
	names := []string{s.Metric}
	for _, a := range s.Also {
		names = append(names, a.Metric)
	}
	return names
}

// Usual keeps those that are measured unless others are asked for by name.
func Usual(scenarios []Scenario) []Scenario {
	return slices.DeleteFunc(slices.Clone(scenarios), func(s Scenario) bool { return s.OnDemand })
}

// Only keeps the scenarios that yield a row whose name matches a regular expression.
func Only(scenarios []Scenario, pattern string) ([]Scenario, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	var kept []Scenario
	var names []string
	for _, s := range scenarios {
		rows := s.rowNames()
		names = append(names, rows...)
		if slices.ContainsFunc(rows, re.MatchString) {
			kept = append(kept, s)
		}
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("bench: %q matches none of %s", pattern, strings.Join(names, ", "))
	}
	return kept, nil
}

// networkKey is all that makes a network what it is.
type networkKey struct {
	system   string
	topology Topology
	underlay string
	mtuBytes int
	pods     int // of an idle node, or of the real one of a cluster
	services int // besides the one asked
	cluster  crowd.Size
}

func (k networkKey) String() string {
	if k.topology == InMemory {
		return k.system
	}
	s := fmt.Sprintf("%s, %s, MTU %d", k.system, k.topology, k.mtuBytes)
	if k.services > 0 {
		s += fmt.Sprintf(", %d services", k.services)
	}
	if k.topology.large() {
		s += ", " + k.cluster.String()
	}
	if k.underlay != "" {
		s += ", underlay " + k.underlay
	}
	return s
}

func (s *Scenario) network(system string) networkKey {
	k := networkKey{system: system, topology: s.Topology, underlay: s.Underlay, mtuBytes: s.MTUBytes, pods: s.Pods, services: s.Services, cluster: s.Cluster}
	switch {
	case system == systemFew && s.Topology == Kubernetes:
		k.cluster, k.pods = smallCluster, localPods
	case system == systemFew:
		k.services = fewServices
	}
	return k
}

// endpoints are where a load's two sides run.
type endpoints struct {
	client, server *lab.Namespace
	to             netip.Addr // the server's address, as the client reaches it
	port           uint16     // likewise its port, where that is not loadPort
}

// target is where the client sends to.
func (e *endpoints) target() netip.AddrPort {
	if e.port != 0 {
		return netip.AddrPortFrom(e.to, e.port)
	}
	return netip.AddrPortFrom(e.to, loadPort)
}
