package nodeapi

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"vswitch/internal/fdpass"
)

// peerCredentials asks the kernel who is at the other end of each connection.
// A peer that may not call is let through the handshake, so that it gets
// PERMISSION_DENIED for an answer and not a broken connection.
type peerCredentials struct{}

// peerInfo is what the handshake found, in the peer of every call's context.
type peerInfo struct {
	credentials.CommonAuthInfo
	cred fdpass.Cred
	err  error // why the peer may not call; nil: it may
}

func (peerInfo) AuthType() string { return "unix" }

func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("not a unix socket")
	}
	cred, err := fdpass.CheckPeer(unixConn)
	return conn, peerInfo{cred: cred, err: err}, nil
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

func (peerCredentials) Info() credentials.ProtocolInfo            { return insecure.NewCredentials().Info() }
func (p peerCredentials) Clone() credentials.TransportCredentials { return p }
func (peerCredentials) OverrideServerName(string) error           { return nil }

// authorize refuses every call of a peer that is neither root nor the daemon's user.
func authorize(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := mayCall(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// authorizeStream is authorize for calls that answer in a stream.
func authorizeStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := mayCall(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

func mayCall(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.PermissionDenied, "the peer is not known")
	}
	info, ok := p.AuthInfo.(peerInfo)
	if !ok {
		return status.Error(codes.PermissionDenied, "the peer is not known")
	}
	if info.err != nil {
		return status.Error(codes.PermissionDenied, info.err.Error())
	}
	return nil
}
