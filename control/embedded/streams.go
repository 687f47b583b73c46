package embedded

import (
	"context"

	"google.golang.org/grpc"
)

// endStreams ends every stream when ctx does. Watches and lease renewals are
// streams that their clients keep open for ever; etcd, told to stop, waits for them
// as it does for requests, 5.4 s, and a node that stops waits for its store.
func endStreams(ctx context.Context) grpc.StreamServerInterceptor {
	return func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		c, cancel := context.WithCancel(s.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return next(srv, stream{s, c})
	}
}

// stream is a stream with a context of its own.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }
