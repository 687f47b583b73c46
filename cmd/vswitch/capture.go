package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/packetline"
	"vswitch/internal/pcapng"
)

// captureOptions are the flags of `vswitch capture`.
type captureOptions struct {
	daemon
	request  apiv1.CaptureRequest
	duration time.Duration
	file     string
}

func newCapture() *cobra.Command {
	o := &captureOptions{}
	cmd := &cobra.Command{
		Use:   "capture [--pod NAMESPACE/NAME | --tunnel] [--drops] [FILTER...]",
		Short: "Show the packets that pass through the switch, or write them to a file",
		Long: `Show the packets that pass through the switch of this node, or write them to a
pcapng file. They cross no interface of the host, so tcpdump there sees nothing.

A packet is shown where it enters (in) and where it leaves (out), as it is there:
with the service's address on one side and the endpoint's on the other. What is
dropped is marked with the reason. Packets of the tunnel are the inner ones. Checksums that were
left to a device are complete; a super-frame, which stands for many packets, is
marked with the size of its segments.

FILTER is in tcpdump's language: host, net, port, portrange, src, dst, ip, ip6, arp,
tcp, udp, sctp, icmp, icmp6, ether, proto, less, greater, and, or, not, parentheses.`,
		Example: `  vswitch capture --pod default/web tcp port 80
  vswitch capture --drops
  vswitch capture --tunnel -c 100 -w tunnel.pcapng
  vswitch capture -w - | wireshark -k -i -`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.request.Filter = strings.Join(args, " ")
			if o.request.GetPod() != "" && !strings.Contains(o.request.GetPod(), "/") {
				o.request.Pod = "default/" + o.request.GetPod()
			}
			if o.duration < 0 {
				return fmt.Errorf("--duration %v: want 0 or more", o.duration)
			}
			if o.duration > 0 {
				o.request.MaxMilliseconds = uint64(max(o.duration.Milliseconds(), 1))
			}
			return o.run(cmd)
		},
	}
	o.addFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.request.Pod, "pod", "", "only what the pod `NAMESPACE/NAME` sends and gets")
	f.BoolVar(&o.request.Tunnel, "tunnel", false, "only what comes from other nodes and goes to them")
	f.BoolVar(&o.request.Drops, "drops", false, "only what is dropped, as it was then")
	f.StringVarP(&o.file, "write", "w", "", "write to a pcapng `FILE`; - for standard output")
	f.Uint64VarP(&o.request.MaxPackets, "count", "c", 0, "end after `N` packets")
	f.DurationVar(&o.duration, "duration", 0, "end after `TIME`, such as 30s")
	f.Uint32VarP(&o.request.SnapBytes, "snaplen", "s", 0, "keep `BYTES` of each packet; 0: all")
	cmd.MarkFlagsMutuallyExclusive("pod", "tunnel")
	return cmd
}

func (o *captureOptions) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	out, finish, err := o.open(cmd.OutOrStdout())
	if err != nil {
		return err
	}
	shown, lost := uint64(0), uint64(0)
	err = o.call(ctx, func(c *apiv1.Client) error {
		stream, err := c.Capture(ctx, &o.request, grpc.MaxCallRecvMsgSize(maxReplyBytes))
		if err != nil {
			return err
		}
		for begun := false; ; begun = true {
			reply, err := stream.Recv()
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			if !begun {
				fmt.Fprintln(cmd.ErrOrStderr(), "capturing; Ctrl-C ends it")
			}
			lost = reply.GetLost()
			for _, p := range reply.GetPackets() {
				if err := out.packet(p); err != nil {
					return err
				}
				shown++
			}
			if err := out.flush(); err != nil {
				return err
			}
		}
	})
	err = errors.Join(err, finish(lost))
	if err == nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d packets captured, %d lost for want of room\n", shown, lost)
	}
	return err
}

// captureOutput is where packets go.
type captureOutput interface {
	packet(*apiv1.CapturedPacket) error
	flush() error
}

// open makes the output; finish ends it.
func (o *captureOptions) open(stdout io.Writer) (out captureOutput, finish func(lost uint64) error, err error) {
	if o.file == "" {
		w := bufio.NewWriter(stdout)
		return &captureText{w: w}, func(uint64) error { return w.Flush() }, nil
	}
	w, closeFile := stdout, func() error { return nil }
	if f, ok := stdout.(*os.File); o.file == "-" && ok && isTerminal(f) {
		return nil, nil, errors.New("-w -: standard output is a terminal; want a file or a pipe, such as | tcpdump -r -")
	}
	if o.file != "-" {
		// What pods say is theirs and root's.
		f, err := os.OpenFile(o.file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("-w %s: %w", o.file, err)
		}
		w, closeFile = f, f.Close
	}
	buffered := bufio.NewWriterSize(w, 1<<20)
	file, err := pcapng.NewWriter(buffered, "vswitch "+version)
	if err != nil {
		return nil, nil, errors.Join(err, closeFile())
	}
	c := &captureFile{w: buffered, file: file, snapBytes: o.request.GetSnapBytes(), interfaces: map[string]uint32{}}
	return c, func(lost uint64) error {
		var err error
		if len(c.interfaces) == 0 { // tcpdump calls a file without any damaged
			_, err = file.AddInterface(pcapng.Interface{Name: "vswitch", SnapBytes: c.snapBytes})
		}
		return errors.Join(err, file.WriteLost(uint64(time.Now().UnixNano()), lost), buffered.Flush(), closeFile())
	}, nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// captureFile writes pcapng. Interfaces are announced when their first packet comes.
type captureFile struct {
	w          *bufio.Writer
	file       *pcapng.Writer
	snapBytes  uint32
	interfaces map[string]uint32 // by port
}

func (c *captureFile) packet(p *apiv1.CapturedPacket) error {
	id, ok := c.interfaces[p.GetPort()]
	if !ok {
		var err error
		id, err = c.file.AddInterface(pcapng.Interface{Name: p.GetInterface(), Description: p.GetPort(), SnapBytes: c.snapBytes})
		if err != nil {
			return err
		}
		c.interfaces[p.GetPort()] = id
	}
	direction := pcapng.Inbound
	if p.GetEgress() {
		direction = pcapng.Outbound
	}
	return c.file.WritePacket(&pcapng.Packet{
		Interface: id, UnixNano: uint64(p.GetUnixNano()), Data: p.GetData(), Bytes: p.GetBytes(),
		Direction: direction, Comment: strings.Join(remarks(p), "; "),
	})
}

func (c *captureFile) flush() error { return c.w.Flush() }

// remarks are what the packet's own bytes don't say.
func remarks(p *apiv1.CapturedPacket) []string {
	var all []string
	if p.GetDrop() != "" {
		all = append(all, "dropped: "+p.GetDrop())
	}
	if p.GetSegmentBytes() != 0 {
		all = append(all, fmt.Sprintf("super-frame: %s segments of %d bytes", p.GetSegmentKind(), p.GetSegmentBytes()))
	}
	if p.GetPeer() != "" {
		way := "from"
		if p.GetEgress() {
			way = "to"
		}
		all = append(all, way+" node "+p.GetPeer())
	}
	return all
}

// captureText writes a line for each packet.
type captureText struct{ w *bufio.Writer }

func (c *captureText) packet(p *apiv1.CapturedPacket) error {
	way := "in "
	if p.GetEgress() {
		way = "out"
	}
	fmt.Fprintf(c.w, "%s %s %s %s", time.Unix(0, p.GetUnixNano()).Format("15:04:05.000000"), p.GetInterface(), way, packetline.Of(p.GetData(), int(p.GetBytes())))
	for _, r := range remarks(p) {
		fmt.Fprintf(c.w, " [%s]", r)
	}
	_, err := fmt.Fprintln(c.w) // a bufio.Writer's errors stay
	return err
}

func (c *captureText) flush() error { return c.w.Flush() }
