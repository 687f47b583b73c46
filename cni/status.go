package cni

import (
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	apiv1 "vswitch/control/api/v1"
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
	reply, err := call(c.Socket, apiv1.NodeClient.Status, &apiv1.StatusRequest{})
	switch {
	case absentDaemon(err):
		// The daemon is also what carries the frames of the pods there are.
		return types.NewError(types.ErrLimitedConnectivity, "the daemon does not run", err.Error())
	case err != nil:
		return types.NewError(types.ErrPluginNotAvailable, "the daemon does not answer", message(err))
	case reply.GetReady():
		return nil
	case reply.GetLimitedConnectivity():
		return types.NewError(types.ErrLimitedConnectivity, "the daemon is not ready", reply.GetReason())
	}
	return types.NewError(types.ErrPluginNotAvailable, "the daemon is not ready", reply.GetReason())
}
