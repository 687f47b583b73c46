package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/vswitch/frame"
)

// A node's record is a v1.Node, whoever runs the node. What VXLAN needs beyond
// the schema is in annotations: vswitch's own for a vswitch node, flannel's for a
// flannel node, which a user applies by hand or a Kubernetes source delivers.
// flannel gives each family its own device, VNI, MAC and underlay address, so a
// flannel node can be two tunnels where a vswitch node is one.

// FlannelPort is the UDP port of flannel's VXLAN on Linux, the kernel's default
// rather than IANA's 4789.
const FlannelPort = 8472

// Device of a vswitch node's tunnel.
const vswitchDevice = "vxlan"

// NewNode makes the record a vswitch node publishes of itself.
func NewNode(c Claim) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: c.Node, Annotations: map[string]string{
			AnnotationInstance: c.Instance,
			AnnotationUnderlay: joinAddrs(c.Facts.Underlays),
			AnnotationUDPPorts: joinPorts(c.Facts.UDPPorts),
			AnnotationVNI:      strconv.FormatUint(uint64(c.Facts.VNI), 10),
			AnnotationVTEPMAC:  c.Facts.VTEPMAC.String(),
		}},
	}
	if vni := c.Facts.IngressVNI; vni != 0 {
		n.Annotations[AnnotationIngressVNI] = strconv.FormatUint(uint64(vni), 10)
	}
	if c.Facts.Zone != "" {
		n.Labels = map[string]string{corev1.LabelTopologyZone: c.Facts.Zone}
	}
	for _, p := range c.PodCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, p.String())
	}
	if len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
	return n
}

// nodeView is a Node record read once: what it publishes, in typed form.
type nodeView struct {
	name     string
	instance string // empty: not a vswitch node
	zone     string // empty: not said
	notReady bool   // its record says so; what says nothing is ready
	prefixes []netip.Prefix
	devices  []device
}

// device is one VXLAN device of a node and the pod prefixes reached through it.
type device struct {
	name      string
	underlays []netip.Addr
	ports     []uint16
	anyPort   bool
	vni       uint32
	mac       frame.MAC
	// ingressVNI is 0 where frames from outside the cluster are not taken.
	ingressVNI uint32
	prefixes   []netip.Prefix
}

// viewNode reads a Node record. The error names the annotation or field.
func viewNode(n *corev1.Node) (nodeView, error) {
	v := nodeView{name: n.Name, instance: n.Annotations[AnnotationInstance], zone: n.Labels[corev1.LabelTopologyZone]}
	v.notReady = !NodeReady(n)
	var err error
	if v.prefixes, err = NodePrefixes(n); err != nil {
		return v, err
	}
	switch {
	case n.Annotations[AnnotationUnderlay] != "" && !flannelTookOver(n):
		v.devices, err = vswitchDevices(n, v.prefixes)
	default:
		v.devices, err = flannelDevices(n, v.prefixes)
	}
	return v, err
}

// NodeReady reports whether a node's record doesn't say that it is not ready.
func NodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status != corev1.ConditionFalse && c.Status != corev1.ConditionUnknown
		}
	}
	return true
}

// NodePrefixes are the pod prefixes of a node, sorted. The error names the field.
func NodePrefixes(n *corev1.Node) ([]netip.Prefix, error) {
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	if len(cidrs) == 0 {
		return nil, errors.New("spec.podCIDRs: empty; want the node's pod prefixes")
	}
	var out []netip.Prefix
	for i, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		switch {
		case err != nil:
			return nil, fmt.Errorf("spec.podCIDRs[%d]: %q is not a prefix such as 10.244.1.0/24", i, c)
		case p != p.Masked():
			return nil, fmt.Errorf("spec.podCIDRs[%d]: %q has host bits set; want %s", i, c, p.Masked())
		case p.Addr().Is4In6() || p.Bits() == 0 || !p.Addr().IsGlobalUnicast():
			return nil, fmt.Errorf("spec.podCIDRs[%d]: %q is not a prefix of unicast addresses", i, c)
		}
		for _, q := range out {
			if q.Overlaps(p) {
				return nil, fmt.Errorf("spec.podCIDRs[%d]: %s overlaps %s", i, p, q)
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out, nil
}

// flannelTookOver reports whether flannel wrote its annotations after vswitch, which
// writes them alike: the node was moved back, and nobody hears at what vswitch said.
func flannelTookOver(n *corev1.Node) bool {
	for _, key := range []string{flannelData, flannelDataV6} {
		var data flannelBackendData
		if json.Unmarshal([]byte(n.Annotations[key]), &data) != nil || data.VtepMAC == "" {
			continue
		}
		theirs, err := frame.ParseMAC(data.VtepMAC)
		ours, ourErr := frame.ParseMAC(n.Annotations[AnnotationVTEPMAC])
		if err == nil && (ourErr != nil || theirs != ours) {
			return true
		}
	}
	return false
}

// FlannelAnnotations are those by which flannel nodes reach a vswitch node: its
// VXLAN as flannel's VXLAN backend says its own. A family without an underlay
// address is left out.
func FlannelAnnotations(f NodeFacts) map[string]string {
	out := map[string]string{flannelSubnetManager: "true", flannelBackendType: "vxlan"}
	data, err := json.Marshal(flannelBackendData{VNI: f.VNI, VtepMAC: f.VTEPMAC.String()})
	if err != nil {
		return nil // of a number and a string there is JSON
	}
	for _, a := range f.Underlays {
		if a.Is4() {
			out[flannelPublicIP], out[flannelData] = a.String(), string(data)
		} else {
			out[flannelPublicIPv6], out[flannelDataV6] = a.String(), string(data)
		}
	}
	return out
}

func vswitchDevices(n *corev1.Node, prefixes []netip.Prefix) ([]device, error) {
	d := device{name: vswitchDevice, prefixes: prefixes}
	for _, s := range strings.Split(n.Annotations[AnnotationUnderlay], ",") {
		a, err := underlayAddr(AnnotationUnderlay, s)
		if err != nil {
			return nil, err
		}
		d.underlays = append(d.underlays, a)
	}
	var err error
	if d.ports, err = parsePorts(n.Annotations[AnnotationUDPPorts]); err != nil {
		return nil, err
	}
	vni, err := strconv.ParseUint(n.Annotations[AnnotationVNI], 10, 24)
	if err != nil {
		return nil, annotationError(AnnotationVNI, n.Annotations[AnnotationVNI], "a number of 24 bits")
	}
	d.vni = uint32(vni)
	if s := n.Annotations[AnnotationIngressVNI]; s != "" {
		vni, err := strconv.ParseUint(s, 10, 24)
		if err != nil || uint32(vni) == d.vni {
			return nil, annotationError(AnnotationIngressVNI, s, "a number of 24 bits other than "+AnnotationVNI)
		}
		d.ingressVNI = uint32(vni)
	}
	if d.mac, err = vtepMAC(AnnotationVTEPMAC, n.Annotations[AnnotationVTEPMAC]); err != nil {
		return nil, err
	}
	return []device{d}, nil
}

// flannelBackendData is what flannel's vxlan backend publishes
// (flannel pkg/backend/vxlan/vxlan.go, vxlanLeaseAttrs).
type flannelBackendData struct {
	VNI     uint32
	VtepMAC string
}

func flannelDevices(n *corev1.Node, prefixes []netip.Prefix) ([]device, error) {
	if t := n.Annotations[flannelBackendType]; t != "" && t != "vxlan" {
		return nil, annotationError(flannelBackendType, t, "vxlan")
	}
	ports := []uint16{FlannelPort}
	if s := n.Annotations[AnnotationUDPPorts]; s != "" && n.Annotations[AnnotationUnderlay] == "" { // else it is vswitch's, of before
		var err error
		if ports, err = parsePorts(s); err != nil {
			return nil, err
		}
	}
	var v4, v6 []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	var out []device
	for _, f := range []struct {
		name, data, ip string
		prefixes       []netip.Prefix
	}{
		{"flannel.", flannelData, flannelPublicIP, v4},
		{"flannel-v6.", flannelDataV6, flannelPublicIPv6, v6},
	} {
		if len(f.prefixes) == 0 {
			continue
		}
		d, err := flannelDevice(n.Annotations, f.data, f.ip)
		if err != nil {
			return nil, err
		}
		d.name = f.name + strconv.FormatUint(uint64(d.vni), 10)
		d.ports, d.anyPort, d.prefixes = ports, true, f.prefixes
		out = append(out, d)
	}
	return out, nil
}

func flannelDevice(annotations map[string]string, dataKey, ipKey string) (device, error) {
	raw := annotations[dataKey]
	if raw == "" || raw == "null" {
		return device{}, annotationError(dataKey, raw, `{"VNI":1,"VtepMAC":"..."}, as spec.podCIDRs has a prefix of its family`)
	}
	var data flannelBackendData
	if err := json.Unmarshal([]byte(raw), &data); err != nil {
		return device{}, annotationError(dataKey, raw, `{"VNI":1,"VtepMAC":"..."}`)
	}
	if data.VNI >= 1<<24 {
		return device{}, annotationError(dataKey, raw, "a VNI of 24 bits")
	}
	mac, err := vtepMAC(dataKey, data.VtepMAC)
	if err != nil {
		return device{}, err
	}
	a, err := underlayAddr(ipKey, annotations[ipKey])
	if err != nil {
		return device{}, err
	}
	return device{underlays: []netip.Addr{a}, vni: data.VNI, mac: mac}, nil
}

// tunnels are the tunnels from self to the node: a device is reached at its first
// address of a family that self has too. What can't be reached is said in problems.
func (v *nodeView) tunnels(self *Self) (out []Tunnel, problems []string) {
	for _, d := range v.devices {
		i := slices.IndexFunc(d.underlays, func(a netip.Addr) bool { return haveFamily(self.Underlays, a) })
		if i < 0 {
			problems = append(problems, fmt.Sprintf("device %s has underlay %s, of a family this node (%s) has no underlay address of",
				d.name, joinAddrs(d.underlays), joinAddrs(self.Underlays)))
			continue
		}
		out = append(out, Tunnel{
			TunnelKey: TunnelKey{Node: v.name, Device: d.name},
			Underlay:  d.underlays[i], Ports: d.ports, AnyPort: d.anyPort,
			VNI: d.vni, IngressVNI: d.ingressVNI, MAC: d.mac, Prefixes: d.prefixes,
		})
	}
	return out, problems
}

func (v *invalid) node(n *corev1.Node) {
	if _, err := viewNode(n); err != nil {
		v.addf("", "%v", err)
	}
}

func haveFamily(have []netip.Addr, a netip.Addr) bool {
	return slices.ContainsFunc(have, func(h netip.Addr) bool { return h.Is4() == a.Is4() })
}

func underlayAddr(annotation, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
		return a, annotationError(annotation, s, "a unicast IP address")
	}
	return a, nil
}

func vtepMAC(annotation, s string) (frame.MAC, error) {
	m, err := frame.ParseMAC(s)
	if err != nil || m.IsMulticast() || m.IsZero() {
		return m, annotationError(annotation, s, "the VTEP's unicast MAC address")
	}
	return m, nil
}

func parsePorts(s string) ([]uint16, error) {
	var out []uint16
	for _, f := range strings.Split(s, ",") {
		p, err := strconv.ParseUint(strings.TrimSpace(f), 10, 16)
		if err != nil || p == 0 || slices.Contains(out, uint16(p)) {
			return nil, annotationError(AnnotationUDPPorts, s, "different port numbers, comma separated")
		}
		out = append(out, uint16(p))
	}
	return out, nil
}

func annotationError(annotation, value, want string) error {
	if value == "" {
		return fmt.Errorf("metadata.annotations[%s]: missing; want %s", annotation, want)
	}
	return fmt.Errorf("metadata.annotations[%s]: %q; want %s", annotation, value, want)
}

func joinAddrs(as []netip.Addr) string {
	s := make([]string, len(as))
	for i, a := range as {
		s[i] = a.String()
	}
	return strings.Join(s, ",")
}

func joinPorts(ps []uint16) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = strconv.Itoa(int(p))
	}
	return strings.Join(s, ",")
}
