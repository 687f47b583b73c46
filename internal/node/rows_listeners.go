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
		if s.Err != nil {
			r.Problem = s.Err.Error()
		}
		rows = append(rows, r)
	}
	return rows
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
