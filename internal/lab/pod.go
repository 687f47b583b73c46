package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// PortMapping is a port of the host as CNI's conventions write it.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// PodSpec describes a pod to make. The zero value will do.
type PodSpec struct {
	// Namespace and Name in Kubernetes' sense; empty: "default" and the container's name.
	Namespace, Name string
	// UID of the Pod in the API server, which runtimes pass on; may be empty.
	UID    string
	Labels map[string]string
	// Ports of the host that lead to the pod, by the portMappings capability.
	Ports []PortMapping
	// Interface in the pod; empty: eth0.
	Interface string
	// CNIVersion of the network configuration; empty: 1.1.0.
	CNIVersion string
	// Offload in the plugin's configuration: "auto" or "off"; empty: left out.
	Offload string
	// Network is a network configuration list, as JSON, in place of vswitch's own.
	Network string
	// Args go into the plugin's configuration beside the ones every pod has.
	Args map[string]any
}

// Pod is a namespace that the plugin has attached to a node's switch.
type Pod struct {
	*Namespace
	Node        *Node
	Spec        PodSpec
	ContainerID string
	// Addresses as the plugin reported them; zero for a family it did not give.
	IPv4, IPv6 netip.Addr
	MAC        net.HardwareAddr
	Result     *types100.Result

	list *libcni.NetworkConfigList
}

// IP is the pod's address of a family, 4 or 6.
func (p *Pod) IP(family int) netip.Addr {
	if family == 6 {
		return p.IPv6
	}
	return p.IPv4
}

// AddPod makes a namespace and attaches it through the plugin, as a container
// runtime does: through libcni, with the plugin running in the node's namespace.
func (n *Node) AddPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	p, err := n.NewPod(spec)
	if err != nil {
		return nil, err
	}
	if err := p.Add(ctx); err != nil {
		p.Namespace.Close()
		return nil, err
	}
	return p, nil
}

// NewPod makes a pod's namespace and does not attach it yet.
func (n *Node) NewPod(spec PodSpec) (*Pod, error) {
	n.lab.mu.Lock()
	n.pods++
	role := fmt.Sprintf("%s-pod%d", n.Host, n.pods)
	n.lab.mu.Unlock()
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	if spec.Name == "" {
		spec.Name = role
	}
	if spec.Interface == "" {
		spec.Interface = "eth0"
	}
	if spec.CNIVersion == "" {
		spec.CNIVersion = "1.1.0"
	}
	list, err := n.NetworkConfig(spec)
	if err != nil {
		return nil, err
	}
	space, err := n.lab.NewNamespace(role)
	if err != nil {
		return nil, err
	}
	if n.system != nil {
		if err := n.system.show(space); err != nil {
			return nil, err
		}
	}
	return &Pod{Namespace: space, Node: n, Spec: spec, ContainerID: n.lab.Suffix + role, list: list}, space.AllowPing()
}

// Add runs the plugin's ADD and takes its result.
func (p *Pod) Add(ctx context.Context) error {
	r, err := p.Node.CNI().AddNetworkList(ctx, p.list, p.runtime())
	if err != nil {
		return fmt.Errorf("lab: CNI ADD of pod %s/%s on %s: %w", p.Spec.Namespace, p.Spec.Name, p.Node.Host, explain(err))
	}
	if p.Result, err = types100.NewResultFromResult(r); err != nil {
		return fmt.Errorf("lab: result of CNI ADD: %w", err)
	}
	for _, ip := range p.Result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		if addr = addr.Unmap(); addr.Is4() {
			p.IPv4 = addr
		} else {
			p.IPv6 = addr
		}
	}
	if i := slices.IndexFunc(p.Result.Interfaces, func(i *types100.Interface) bool { return i.Sandbox != "" }); i >= 0 {
		p.MAC, err = net.ParseMAC(p.Result.Interfaces[i].Mac)
	}
	p.lab.cfg.Logf("pod %s/%s on %s: %s %s, namespace %s", p.Spec.Namespace, p.Spec.Name, p.Node.Host, p.IPv4, p.IPv6, p.Name)
	return err
}

// Check runs the plugin's CHECK.
func (p *Pod) Check(ctx context.Context) error {
	return explain(p.Node.CNI().CheckNetworkList(ctx, p.list, p.runtime()))
}

// Del runs the plugin's DEL; the namespace stays.
func (p *Pod) Del(ctx context.Context) error {
	return explain(p.Node.CNI().DelNetworkList(ctx, p.list, p.runtime()))
}

// Delete runs the plugin's DEL and removes the namespace.
func (p *Pod) Delete(ctx context.Context) error {
	return errors.Join(p.Del(ctx), p.Namespace.Close())
}

// NetworkConfig is the node's CNI configuration as a pod of this spec gets it.
func (n *Node) NetworkConfig(spec PodSpec) (*libcni.NetworkConfigList, error) {
	if spec.Network != "" {
		list, err := libcni.ConfListFromBytes([]byte(spec.Network))
		if err != nil {
			return nil, fmt.Errorf("lab: CNI configuration: %w", err)
		}
		return list, nil
	}
	args := map[string]any{}
	for k, v := range spec.Args {
		args[k] = v
	}
	if len(spec.Labels) > 0 {
		// CNI conventions, "args in network config": labels are key/value pairs.
		var labels []map[string]string
		for k, v := range spec.Labels {
			labels = append(labels, map[string]string{"key": k, "value": v})
		}
		args["labels"] = labels
	}
	plugin := map[string]any{"type": "vswitch-cni", "socket": n.Socket()}
	if spec.Offload != "" {
		plugin["offload"] = spec.Offload
	}
	if len(spec.Ports) > 0 {
		plugin["capabilities"] = map[string]bool{"portMappings": true}
	}
	if len(args) > 0 {
		plugin["args"] = map[string]any{"cni": args}
	}
	conf, err := json.Marshal(map[string]any{"cniVersion": spec.CNIVersion, "name": "vswitch", "plugins": []any{plugin}})
	if err != nil {
		return nil, fmt.Errorf("lab: CNI configuration: %w", err)
	}
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		return nil, fmt.Errorf("lab: CNI configuration: %w", err)
	}
	return list, nil
}

func (p *Pod) runtime() *libcni.RuntimeConf {
	r := &libcni.RuntimeConf{
		ContainerID: p.ContainerID,
		NetNS:       p.Path,
		IfName:      p.Spec.Interface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Spec.Namespace},
			{"K8S_POD_NAME", p.Spec.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID},
		},
	}
	if p.Spec.UID != "" {
		r.Args = append(r.Args, [2]string{"K8S_POD_UID", p.Spec.UID})
	}
	if len(p.Spec.Ports) > 0 {
		r.CapabilityArgs = map[string]any{"portMappings": p.Spec.Ports}
	}
	return r
}

// debianPlugins is where Debian's containernetworking-plugins are, to compare with.
const debianPlugins = "/usr/lib/cni"

// CNI is the node's container runtime, as far as networks go.
func (n *Node) CNI() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.lab.cfg.BinDir, debianPlugins}, n.lab.path(n.Host, "cni-cache"), &pluginExec{node: n})
}

// Plugin runs the plugin as given, without libcni in between: for what no
// proper runtime would ask of it. code is its exit code.
func (n *Node) Plugin(ctx context.Context, env []string, stdin string) (stdout []byte, code int, err error) {
	out, err := n.Exec(ctx, Command{
		Name:  "vswitch-cni",
		Path:  filepath.Join(n.lab.cfg.BinDir, "vswitch-cni"),
		Env:   env,
		Stdin: strings.NewReader(stdin),
	})
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, exit.ExitCode(), nil
	}
	return out, 0, err
}

// pluginExec is libcni's way to run a plugin, inside the node's namespace.
type pluginExec struct {
	node *Node
	version.PluginDecoder
}

var _ invoke.Exec = (*pluginExec)(nil)

func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	out, err := e.node.Exec(ctx, Command{Path: path, Env: env, Stdin: bytes.NewReader(stdin)})
	if err == nil {
		return out, nil
	}
	said := &types.Error{}
	if json.Unmarshal(out, said) == nil && said.Msg != "" {
		return nil, said
	}
	return nil, err
}

func (e *pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// explain adds a CNI error's code to its message, which leaves it out.
func explain(err error) error {
	var e *types.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%w (CNI code %d)", err, e.Code)
	}
	return err
}
