package cni

import (
	"errors"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"

	"vswitch/internal/netif"
)

// errOwnNetns: a path leads to the namespace the plugin runs in.
var errOwnNetns = errors.New("the plugin's own namespace")

// openPodNetns opens CNI_NETNS to change something in it. It refuses the
// plugin's own, which is the node's, unless CNI_NETNS_OVERRIDE says that this is
// meant.
func openPodNetns(args *skel.CmdArgs) (*netif.Namespace, error) {
	ns, err := netif.OpenNamespace(args.Netns)
	if err != nil {
		return nil, err
	}
	own, err := ns.IsOwn()
	if err == nil && own && args.NetnsOverride != "1" && !strings.EqualFold(args.NetnsOverride, "true") {
		err = errOwnNetns
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}
