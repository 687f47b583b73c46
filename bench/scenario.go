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
)

//go:embed scenarios.yaml
var defaultScenarios []byte

// Topology is where client and server are.
type Topology string

const (
	SameNode Topology = "same-node"
	TwoNodes Topology = "two-nodes"
)

// Scenario is one row.
type Scenario struct {
	// Name is unique; by convention its parameters, with slashes: same-node/tcp/1.
	Name     string   `json:"name"`
	Topology Topology `json:"topology"`
	// Underlay is how packets cross between two nodes: "wire", in wire size, or
	// "full", with every offload of the virtual link on. Two nodes only.
	Underlay string `json:"underlay,omitempty"`
	// Subject and Baseline are systems.
	Subject  string `json:"subject"`
	Baseline string `json:"baseline"`
	Load     Load   `json:"load"`
	// Duration of one measurement.
	Duration Duration `json:"duration"`
	// MTUBytes of the pods, on both sides; 0: 1500 on one node, and across nodes
	// what VXLAN leaves of the underlay's 1500.
	MTUBytes int `json:"mtu,omitempty"`
	// Goal for the ratio, subject to baseline; 0: none.
	Goal float64 `json:"goal,omitempty"`
}

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
		if seen[s.Name] {
			return nil, fmt.Errorf("bench: two scenarios are named %q", s.Name)
		}
		seen[s.Name] = true
	}
	return f.Scenarios, nil
}

func (s *Scenario) validate() error {
	switch {
	case s.Name == "":
		return errors.New("it has no name")
	case s.Topology != SameNode && s.Topology != TwoNodes:
		return fmt.Errorf("topology %q is none of %s, %s", s.Topology, SameNode, TwoNodes)
	case s.Topology == SameNode && s.Underlay != "":
		return errors.New("underlay is for two nodes")
	case s.Topology == TwoNodes && s.Underlay != lab.OffloadWire.String() && s.Underlay != lab.OffloadFull.String():
		return fmt.Errorf("underlay %q is none of wire, full", s.Underlay)
	case s.Duration <= 0:
		return errors.New("its duration is missing or not positive")
	case s.MTUBytes != 0 && (s.MTUBytes < 576 || s.MTUBytes > 65535):
		return fmt.Errorf("mtu %d is not within 576..65535", s.MTUBytes)
	case s.Goal < 0:
		return fmt.Errorf("goal %v is negative", s.Goal)
	}
	for _, side := range []struct{ what, name string }{{"subject", s.Subject}, {"baseline", s.Baseline}} {
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
	return s.Load.validate()
}

// Only keeps the scenarios whose name matches a regular expression.
func Only(scenarios []Scenario, pattern string) ([]Scenario, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	var kept []Scenario
	var names []string
	for _, s := range scenarios {
		names = append(names, s.Name)
		if re.MatchString(s.Name) {
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
}

func (k networkKey) String() string {
	s := fmt.Sprintf("%s, %s, MTU %d", k.system, k.topology, k.mtuBytes)
	if k.underlay != "" {
		s += ", underlay " + k.underlay
	}
	return s
}

func (s *Scenario) network(system string) networkKey {
	return networkKey{system: system, topology: s.Topology, underlay: s.Underlay, mtuBytes: s.MTUBytes}
}

// endpoints are where a load's two sides run.
type endpoints struct {
	client, server *lab.Namespace
	to             netip.Addr // the server's address, as the client reaches it
}
