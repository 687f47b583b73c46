package node

import (
	"fmt"

	"vswitch/control"
	"vswitch/vswitch/gateway"
)

// listenerRow is one port of the host that is open, or should be, for clients
// outside.
type listenerRow struct {
	Address  string `json:"address"`
	OpenAt   uint16 `json:"openAt,omitempty"` // the port that is open; another than the address's stands for a low one
	Protocol string `json:"protocol"`
	Kind     string `json:"kind"`
	For      string `json:"for"`               // namespace/service:port, or the pod
	Problem  string `json:"problem,omitempty"` // why it is not open
}

func (v *view) listeners() []any {
	var rows []any
	for _, s := range v.dataplane.listeners() {
		r := listenerRow{
			Address: s.Addr.String(), Protocol: control.Protocol(s.Protocol).String(), Kind: s.Kind.String(), For: s.Owner,
		}
		r.OpenAt = s.OpenAt
		if s.Err != nil {
			r.Problem = s.Err.Error()
		}
		rows = append(rows, r)
	}
	return rows
}

// movedPorts are the ports that are open at another, by their service.
func movedPorts(all []gateway.ListenerStatus) map[control.Key][]string {
	moved := map[control.Key][]string{}
	for _, s := range all {
		if s.OpenAt == 0 || s.OpenAt == s.Addr.Port() || s.Service == (gateway.ServiceKey{}) {
			continue
		}
		k := control.Key{Kind: control.KindService, Scope: s.Service.Namespace, Name: s.Service.Name}
		moved[k] = append(moved[k], fmt.Sprintf("%s %s/%s: open at port %d", s.Kind, s.Addr, control.Protocol(s.Protocol), s.OpenAt))
	}
	return moved
}

// listenerProblems are the ports that could not be opened, by their service.
func listenerProblems(all []gateway.ListenerStatus) map[control.Key][]string {
	problems := map[control.Key][]string{}
	for _, s := range all {
		if s.Err == nil || s.Service == (gateway.ServiceKey{}) {
			continue
		}
		k := control.Key{Kind: control.KindService, Scope: s.Service.Namespace, Name: s.Service.Name}
		problems[k] = append(problems[k], fmt.Sprintf("%s %s/%s: %v", s.Kind, s.Addr, control.Protocol(s.Protocol), s.Err))
	}
	return problems
}
