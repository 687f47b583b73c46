package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"vswitch/internal/attach"
	"vswitch/internal/upkeep"
)

// What a node owns outside of itself, in the order in which it is mended: a directory
// comes before the files in it. Pods' addresses and routes are not here: the daemon
// doesn't see into their namespaces, and CNI CHECK does.

// belongings are what upkeep looks after.
func (n *node) belongings() []upkeep.Object {
	all := []upkeep.Object{
		{Name: "lock of the state directory", Check: func() error { return n.state.locked() }, Mend: func() error { return n.state.relock() }},
		n.stateFile(instanceFile, func() error { return n.state.saveInstance(n.instance) }),
		n.stateFile(claimFile, func() error { return n.saveClaim(n.claim) }),
		n.stateFile(attachmentsFile, func() error { return n.attachments.Save() }),
		n.stateFile(leasesFile, func() error { return n.pool.Save() }),
		n.stateFile(snapshotFile, n.resaving(snapshotFile)),
		n.stateFile(journalFile, n.resaving(journalFile)),
		{Name: "API socket", Check: func() error { return n.api.InPlace() }, Mend: func() error { return n.api.Restore() }},
		{Name: "descriptor socket", Check: func() error { return n.descriptors.InPlace() }, Mend: func() error { return n.descriptors.Restore() }},
		n.stateFile(keeperSocket, nil), // without which no other daemon can take over; it is the keeper's
		n.underlayObject(),
		{Name: "interfaces of pods", Check: n.checkPods()},
		{Name: "routes of the attached host", Check: n.checkHost},
	}
	if n.cfg.Store.Embedded() {
		all = append(all, n.stateFile(storeDir, nil))
	}
	return all
}

// stateFile is a file of the state directory. One that was never written is not
// missing: it is looked after from the first time it is seen.
func (n *node) stateFile(name string, mend func() error) upkeep.Object {
	seen := false
	return upkeep.Object{Name: name + " in the state directory", Mend: mend, Check: func() error {
		_, err := os.Lstat(n.state.file(name))
		if err == nil {
			seen = true
		} else if errors.Is(err, fs.ErrNotExist) && !seen {
			return nil
		}
		return err
	}}
}

// resaveTimeout is longer than the saver waits between two writes.
const resaveTimeout = 3 * time.Second

// resaving has the last good state written anew, and waits for one of its files.
func (n *node) resaving(name string) func() error {
	return func() error {
		n.controller.Resave()
		tick := time.NewTicker(resaveTimeout / 30)
		defer tick.Stop()
		for deadline := time.Now().Add(resaveTimeout); time.Now().Before(deadline); {
			if _, err := os.Lstat(n.state.file(name)); err == nil {
				return nil
			}
			select {
			case <-tick.C:
			case <-n.ctx.Done():
				return nil
			}
		}
		return errors.New("the last good state is written once the store has answered")
	}
}

// checkPods names the pods whose interface is gone or not here yet, at the second look:
// one that is being deleted loses its interface a moment before the daemon is told.
func (n *node) checkPods() func() error {
	before := map[attach.Key]bool{}
	return func() error {
		var wrong []string
		detached := map[attach.Key]bool{}
		for _, a := range n.attachments.List() {
			if a.State != attach.Detached {
				continue
			}
			detached[a.Key] = true
			if before[a.Key] {
				wrong = append(wrong, fmt.Sprintf("%s/%s: %s", a.Pod.Namespace, a.Pod.Name, a.Problem))
			}
		}
		before = detached
		if len(wrong) == 0 {
			return nil
		}
		slices.Sort(wrong)
		return errors.New(strings.Join(wrong, "; "))
	}
}

// checkHost looks at the routes of hosts that were attached by `vswitch host attach`,
// where they are in this process's own namespace.
func (n *node) checkHost() error {
	for _, a := range n.attachments.List() {
		if !a.Host || a.State != attach.Attached || !isInterfaceHere(&a) {
			continue
		}
		for _, p := range slices.Concat(n.cfg.ClusterCIDR, n.cfg.ServiceCIDR, n.cfg.LBCIDR) {
			for _, own := range a.Addrs {
				if own.Is4() == p.Addr().Is4() && sourceTowards(memberOf(p)) != own {
					return fmt.Errorf("%s: no route to %v from %v; vswitch host attach, run again, puts it back", a.Ifname, p, own)
				}
			}
		}
	}
	return nil
}

// memberOf is an address of a prefix, not the first if there are more: of a network that
// the host is in, that one is for broadcasts.
func memberOf(p netip.Prefix) netip.Addr {
	if p.IsSingleIP() {
		return p.Addr()
	}
	return p.Masked().Addr().Next()
}

func isInterfaceHere(a *attach.Attachment) bool {
	i, err := net.InterfaceByName(a.Ifname)
	return err == nil && i.HardwareAddr.String() == a.MAC.String()
}

// sourceTowards asks the kernel which address it would send from; none without a
// route. Connecting a datagram socket sends nothing.
func sourceTowards(to netip.Addr) netip.Addr {
	const discard = 9
	conn, err := net.Dial("udp", netip.AddrPortFrom(to, discard).String())
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// upkeepRow is one of belongings as `vswitch get upkeep` shows it.
type upkeepRow struct {
	Object  string `json:"object"`
	Problem string `json:"problem,omitempty"`
	Since   string `json:"since,omitempty"` // RFC 3339
	Found   uint64 `json:"found"`           // times it was not as it should be
	Mended  uint64 `json:"mended"`          // times the daemon put it right
}

func (v *view) upkeepRows() []any {
	var rows []any
	for _, s := range v.upkeep.Status() {
		r := upkeepRow{Object: s.Object, Problem: s.Problem, Found: s.Found, Mended: s.Mended}
		if s.Problem != "" {
			r.Since = s.Since.Format(time.RFC3339)
		}
		rows = append(rows, r)
	}
	return rows
}
