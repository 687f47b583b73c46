package node

import (
	"cmp"
	"net/netip"
	"slices"

	"vswitch/control"
	"vswitch/internal/wire"
	"vswitch/vswitch"
	"vswitch/vswitch/flow"
)

// Rows of what passes: connections, and what was dropped.

// flowRow gives a connection as its client sees it, and where its answers come
// from when that is another.
type flowRow struct {
	Protocol    string `json:"protocol"`
	Source      string `json:"source"`
	Destination string `json:"destination"`
	AnsweredBy  string `json:"answeredBy,omitempty"` // the endpoint behind a service
	AnsweredTo  string `json:"answeredTo,omitempty"` // the source that the endpoint sees
	State       string `json:"state"`
	Frames      uint64 `json:"frames"`
	Bytes       uint64 `json:"bytes"`
	ReplyFrames uint64 `json:"replyFrames"`
	ReplyBytes  uint64 `json:"replyBytes"`
	AgeSeconds  uint32 `json:"ageSeconds"`
	IdleSeconds uint32 `json:"idleSeconds"`
}

const ticksPerSecond = 10

// flowRows yields the connections as the table has them: a full one is never in memory as
// rows.
func (v *view) flowRows(yield func(any) bool) {
	for i := range v.flows.All() {
		r := flowRow{
			Protocol:    protocolName(i.Orig.Proto),
			Source:      place(i.Orig.Src, i.Orig.SrcPort),
			Destination: place(i.Orig.Dst, i.Orig.DstPort),
			State:       i.State.String(),
			Frames:      i.Frames[flow.Forward], Bytes: i.Bytes[flow.Forward],
			ReplyFrames: i.Frames[flow.Reply], ReplyBytes: i.Bytes[flow.Reply],
			AgeSeconds: i.AgeTicks / ticksPerSecond, IdleSeconds: i.IdleTicks / ticksPerSecond,
		}
		if by := place(i.Reply.Src, i.Reply.SrcPort); by != r.Destination {
			r.AnsweredBy = by
		}
		if to := place(i.Reply.Dst, i.Reply.DstPort); to != r.Source {
			r.AnsweredTo = to
		}
		if !yield(&r) {
			return
		}
	}
}

func place(a wire.Addr, port uint16) string { return netip.AddrPortFrom(a.Netip(), port).String() }

func protocolName(p uint8) string {
	switch p {
	case wire.ProtoICMP, wire.ProtoICMPv6:
		return "ICMP"
	}
	return control.Protocol(p).String()
}

type dropRow struct {
	Name  string `json:"name"` // the reason
	Pod   string `json:"pod"`  // namespace/name; empty: no pod's, or pods that are gone
	Node  string `json:"node"`
	Count uint64 `json:"count"`
	Port  string `json:"port,omitempty"` // tunnel or gateway
}

func (v *view) drops() []any {
	pods := map[string]string{} // by port name
	for _, a := range v.attachments.List() {
		pods[a.Port] = a.Pod.Namespace + "/" + a.Pod.Name
	}
	var all []dropRow
	for _, p := range v.ports.Stats() {
		port := ""
		if p.Kind != vswitch.PortPod {
			port = p.Name
		}
		for reason, n := range p.Drops {
			all = append(all, dropRow{Name: reason.String(), Pod: pods[p.Name], Node: v.node, Count: n, Port: port})
		}
	}
	for reason, n := range v.ports.retired() {
		all = append(all, dropRow{Name: reason.String(), Node: v.node, Count: n})
	}
	slices.SortFunc(all, func(a, b dropRow) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Port, b.Port))
	})
	return anyOf(all)
}
