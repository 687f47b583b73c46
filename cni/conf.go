package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"vswitch/control/api"
)

// pluginType is what "type" in a network configuration says, and so the name of
// the binary.
const pluginType = "vswitch-cni"

// conf is the network configuration of stdin, validated.
type conf struct {
	CNIVersion string
	Network    string            // "name"
	Socket     string            // of the daemon; DefaultSocket if absent
	Plain      bool              // "offload": "off": the TAP gets no virtio-net header
	Labels     map[string]string // args.cni.labels
	Ports      []api.PortMapping // runtimeConfig.portMappings
	DNS        *types.DNS        // handed through to the result; nil: the daemon says
	Prev       *types100.Result  // nil: no prevResult
	// Valid is the list a GC gives; nil: there was none, which isn't the same as
	// an empty one.
	Valid []types.GCAttachment
}

// confJSON is conf as it is written. What only ADD and CHECK read is decoded for
// them alone.
type confJSON struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	Socket     string          `json:"socket"`
	Offload    json.RawMessage `json:"offload"` // "auto" or "off"
	DNS        json.RawMessage `json:"dns"`
	PrevResult json.RawMessage `json:"prevResult"`
	// Args is free for anybody's use (CNI conventions); argsJSON is our part.
	Args json.RawMessage `json:"args"`
	// RuntimeConfig is what the runtime gives for the capabilities asked for.
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	// Two names: the specification's, and the one its first edition had.
	Valid    json.RawMessage `json:"cni.dev/valid-attachments"`
	ValidOld json.RawMessage `json:"cni.dev/attachments"`
}

type argsJSON struct {
	CNI struct {
		Labels []struct {
			Key   string `json:"key"`
			Value string `json:"value"`
		} `json:"labels"`
	} `json:"cni"`
}

// knownKeys are the keys of a configuration that ADD accepts, beside those of
// the reserved prefix "cni.dev/". What runtimes add themselves is among them.
var knownKeys = []string{"cniVersion", "name", "type", "socket", "offload", "dns", "prevResult", "args"}

// strictness says what becomes of keys the plugin doesn't know.
type strictness bool

const (
	// strict: they are errors. To do less than a configuration asks for is worse
	// than to refuse it.
	strict strictness = true
	// lenient: they are ignored, and so are those that only an ADD needs. What an
	// older configuration made must go away under a newer one.
	lenient strictness = false
)

// parseConf reads and validates a network configuration. Its errors are
// *types.Error: 6 for what isn't JSON of this shape, 2 for a key that isn't
// supported, 7 for a value that is wrong.
func parseConf(stdin []byte, s strictness) (*conf, error) {
	var raw confJSON
	if err := json.Unmarshal(stdin, &raw); err != nil {
		return nil, decodingError("network configuration", err)
	}
	if raw.Name == "" {
		return nil, configError("name: missing")
	}
	if raw.Type != pluginType {
		return nil, configError("type %q: want %q", raw.Type, pluginType)
	}
	c := &conf{CNIVersion: raw.CNIVersion, Network: raw.Name, Socket: raw.Socket}
	if c.Socket == "" {
		var err error
		if c.Socket, err = api.DefaultSocket(); err != nil {
			return nil, configError("socket: missing, and there is no default: %v", err)
		}
	}
	if err := api.CheckSocketPath(c.Socket); err != nil {
		return nil, configError("%v", err)
	}
	var err error
	if c.Valid, err = parseValid(raw.Valid, raw.ValidOld); err != nil {
		return nil, err
	}
	if s == lenient {
		return c, nil
	}
	if err := checkKeys(stdin); err != nil {
		return nil, err
	}
	if c.Plain, err = parseOffload(raw.Offload); err != nil {
		return nil, err
	}
	if !absent(raw.DNS) {
		c.DNS = new(types.DNS)
		if err := json.Unmarshal(raw.DNS, c.DNS); err != nil {
			return nil, decodingError("dns", err)
		}
	}
	if c.Labels, err = parseLabels(raw.Args); err != nil {
		return nil, err
	}
	if c.Ports, err = parsePorts(raw.RuntimeConfig); err != nil {
		return nil, err
	}
	if c.Prev, err = parsePrev(raw.PrevResult); err != nil {
		return nil, err
	}
	return c, nil
}

// checkKeys finds keys that ask for something the plugin doesn't do, such as
// ipam, ipMasq, or a runtimeConfig with a bandwidth.
func checkKeys(stdin []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &all); err != nil {
		return decodingError("network configuration", err)
	}
	for _, key := range sortedKeys(all) {
		value := all[key]
		switch {
		case slices.Contains(knownKeys, key), strings.HasPrefix(key, "cni.dev/"):
		case (key == "runtimeConfig" || key == "capabilities") && empty(value, portMappings):
		case key == "ipam" && empty(value):
			// A runtime that hands over every key, or one with nothing to say.
		default:
			return unsupportedError(key, value)
		}
	}
	return nil
}

// empty reports whether a JSON value says nothing: null, {}, or a dictionary of
// nothing but false and what is known.
func empty(value json.RawMessage, known ...string) bool {
	var m map[string]any
	if err := json.Unmarshal(value, &m); err != nil {
		return false
	}
	for k, v := range m {
		if v != false && !slices.Contains(known, k) {
			return false
		}
	}
	return true
}

// parseOffload reads "offload": auto, which is the default, or off.
func parseOffload(raw json.RawMessage) (plain bool, err error) {
	if absent(raw) {
		return false, nil
	}
	var word string
	if err := json.Unmarshal(raw, &word); err != nil || word != "auto" && word != "off" {
		return false, configError("offload %s: want \"auto\" or \"off\"", short(raw))
	}
	return word == "off", nil
}

// parseLabels reads args.cni.labels.
func parseLabels(raw json.RawMessage) (map[string]string, error) {
	if absent(raw) {
		return nil, nil
	}
	var args argsJSON
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, decodingError("args", err)
	}
	labels := map[string]string{}
	for _, l := range args.CNI.Labels {
		if l.Key == "" {
			return nil, configError("args.cni.labels: a label without a key")
		}
		if old, ok := labels[l.Key]; ok {
			return nil, configError("args.cni.labels: %q is given twice, as %q and %q", l.Key, old, l.Value)
		}
		labels[l.Key] = l.Value
	}
	return labels, nil
}

// parsePrev decodes prevResult, of whatever version it says it is.
func parsePrev(raw json.RawMessage) (*types100.Result, error) {
	if absent(raw) {
		return nil, nil
	}
	var shape struct {
		CNIVersion string            `json:"cniVersion"`
		Interfaces []json.RawMessage `json:"interfaces"`
		IPs        []json.RawMessage `json:"ips"`
		Routes     []json.RawMessage `json:"routes"`
	}
	if err := json.Unmarshal(raw, &shape); err != nil {
		return nil, decodingError("prevResult", err)
	}
	// The library's conversions between versions stumble over null.
	for _, list := range [][]json.RawMessage{shape.Interfaces, shape.IPs, shape.Routes} {
		if slices.ContainsFunc(list, absent) {
			return nil, decodingError("prevResult", errors.New("null in a list"))
		}
	}
	result, err := version.NewResult(shape.CNIVersion, raw)
	if err != nil {
		return nil, decodingError("prevResult", err)
	}
	current, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, decodingError("prevResult", err)
	}
	return current, nil
}

// parseValid decodes the attachments to keep from the first of raw that is there.
func parseValid(raw ...json.RawMessage) ([]types.GCAttachment, error) {
	for _, r := range raw {
		if len(r) == 0 {
			continue
		}
		valid := []types.GCAttachment{}
		if err := json.Unmarshal(r, &valid); err != nil {
			return nil, decodingError("cni.dev/valid-attachments", err)
		}
		if valid == nil { // null: how a Go runtime writes an empty list
			valid = []types.GCAttachment{}
		}
		for i, a := range valid {
			if a.ContainerID == "" || a.IfName == "" {
				// Taken as written it would match nothing, and a live pod would go.
				return nil, configError("cni.dev/valid-attachments[%d]: want containerID and ifname", i)
			}
		}
		return valid, nil
	}
	return nil, nil
}

func absent(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}

func sortedKeys(m map[string]json.RawMessage) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// short is a JSON value fit for an error message.
func short(value json.RawMessage) string {
	const most = 200
	if len(value) > most {
		return fmt.Sprintf("%s... (%d bytes)", value[:most], len(value))
	}
	return string(value)
}
