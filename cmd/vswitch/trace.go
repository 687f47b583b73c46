package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	apiv1 "vswitch/control/api/v1"
)

func newTrace() *cobra.Command {
	var d daemon
	r := &apiv1.TraceRequest{}
	var to, format string
	var sourcePort uint16
	cmd := &cobra.Command{
		Use:   "trace --from POD --to ADDR[:PORT]",
		Short: "Say what would become of a packet, and why, without sending it",
		Long: `Say what would become of a packet that a pod of this node sends: each decision on
its way, the object that made it, and the outcome. Nothing is sent and nothing changes:
no connection is entered, no client is given an endpoint to keep.

The packet is the first of a conversation: a TCP SYN, an SCTP INIT, a UDP datagram, or an
echo request. --source-port traces the beginning of a connection from a port that the pod
uses. Of several endpoints one is drawn as for a real packet.

The outcome is one of delivered (to a pod), outside (by a socket of the host),
answered (by the node itself), refused (the pod is told) and dropped (it is not).`,
		Example: `  vswitch trace --from default/client --to 10.96.0.10:80
  vswitch trace --from client --to fd00:10:244:1::5 -o json
  vswitch trace --from client --to 10.96.0.10:53 --proto udp`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("-o %q: want text or json", format)
			}
			if r.GetPod() == "" {
				return fmt.Errorf("--from \"\": want a pod of this node, NAMESPACE/NAME")
			}
			if !strings.Contains(r.GetPod(), "/") {
				r.Pod = "default/" + r.GetPod()
			}
			if err := parseTarget(to, r); err != nil {
				return err
			}
			r.SourcePort = uint32(sourcePort)
			return d.call(cmd.Context(), func(c *apiv1.Client) error {
				reply, err := c.Trace(cmd.Context(), r)
				if err != nil {
					return err
				}
				if format == "json" {
					return printTraceJSON(cmd.OutOrStdout(), reply)
				}
				return printTrace(cmd.OutOrStdout(), reply)
			})
		},
	}
	d.addFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&r.Pod, "from", "", "the pod that sends, `NAMESPACE/NAME`")
	f.StringVar(&to, "to", "", "where to, `ADDR[:PORT]`; an IPv6 address with a port in brackets")
	f.StringVar(&r.Protocol, "proto", "", "`PROTOCOL`: tcp, udp, sctp or icmp; with a port tcp, else icmp")
	f.Uint16Var(&sourcePort, "source-port", 0, "`PORT` the pod sends from; 0: one that no connection has")
	f.StringVarP(&format, "output", "o", "text", "`FORMAT`: text or json")
	return cmd
}

// parseTarget reads ADDR, ADDR:PORT and [ADDR]:PORT, and settles the protocol.
func parseTarget(to string, r *apiv1.TraceRequest) error {
	if a, err := netip.ParseAddr(strings.Trim(to, "[]")); err == nil {
		r.To, r.Port = a.String(), 0
	} else if p, err := netip.ParseAddrPort(to); err == nil {
		r.To, r.Port = p.Addr().String(), uint32(p.Port())
	} else {
		return fmt.Errorf("--to %q: want an IP address, or one with a port such as 10.96.0.10:80 or [fd00::10]:80", to)
	}
	switch r.GetProtocol() {
	case "":
		r.Protocol = "icmp"
		if r.GetPort() != 0 {
			r.Protocol = "tcp"
		}
	case "tcp", "udp", "sctp":
		if r.GetPort() == 0 {
			return fmt.Errorf("--to %q: want a port for %s", to, r.GetProtocol())
		}
	case "icmp":
		if r.GetPort() != 0 {
			return fmt.Errorf("--to %q: want no port for icmp", to)
		}
	default:
		return fmt.Errorf("--proto %q: want tcp, udp, sctp or icmp", r.GetProtocol())
	}
	return nil
}

func printTrace(w io.Writer, r *apiv1.TraceReply) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range r.GetSteps() {
		by := ""
		if s.GetObject() != "" {
			by = "  [" + s.GetObject() + "]"
		}
		fmt.Fprintf(table, "%s\t%s%s\n", s.GetStage(), s.GetText(), by)
	}
	fmt.Fprintf(table, "outcome\t%s\n", r.GetOutcome().GetText())
	return table.Flush()
}

type traceJSON struct {
	Steps   []traceStepJSON  `json:"steps"`
	Outcome traceOutcomeJSON `json:"outcome"`
}

type traceStepJSON struct {
	Stage  string `json:"stage"`
	Text   string `json:"text"`
	Object string `json:"object,omitempty"`
}

type traceOutcomeJSON struct {
	Verdict string `json:"verdict"`
	Text    string `json:"text"`
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

func printTraceJSON(w io.Writer, r *apiv1.TraceReply) error {
	o := r.GetOutcome()
	out := traceJSON{Steps: []traceStepJSON{}, Outcome: traceOutcomeJSON{
		Verdict: o.GetVerdict(), Text: o.GetText(), Pod: o.GetPod(), Node: o.GetNode(), Reason: o.GetReason(),
	}}
	for _, s := range r.GetSteps() {
		out.Steps = append(out.Steps, traceStepJSON{Stage: s.GetStage(), Text: s.GetText(), Object: s.GetObject()})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(out)
}
