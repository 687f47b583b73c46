package cni

import (
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"vswitch/control/api"
)

// status is CNI STATUS: success only if an ADD would work now.
func (p *plugin) status(args *skel.CmdArgs) error {
	c, err := parseConf(args.StdinData, strict)
	if err != nil {
		return err
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "cannot open TAP devices", err.Error())
	}
	tun.Close()
	reply, err := call(c.Socket, api.Client.Status, &api.StatusRequest{})
	switch {
	case absentDaemon(err):
		// The daemon is also what carries the frames of the pods there are.
		return types.NewError(types.ErrLimitedConnectivity, "the daemon does not run", err.Error())
	case err != nil:
		return types.NewError(types.ErrPluginNotAvailable, "the daemon does not answer", err.Error())
	case reply.Ready:
		return nil
	case reply.LimitedConnectivity:
		return types.NewError(types.ErrLimitedConnectivity, "the daemon is not ready", reply.Reason)
	}
	return types.NewError(types.ErrPluginNotAvailable, "the daemon is not ready", reply.Reason)
}
