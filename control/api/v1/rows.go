package apiv1

import (
	"context"
	"errors"
	"io"
	"iter"

	"google.golang.org/grpc"
)

// maxReplyBytes is what one reply of Get may have: the daemon cuts a list into replies of
// some 1 MiB, but a row by itself may be longer, and older daemons answer in one.
const maxReplyBytes = 64 << 20

// Rows are what Get lists of a kind, a JSON object each, as they come. An error is the
// last.
func (c *Client) Rows(ctx context.Context, kind string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		ctx, cancel := context.WithCancel(ctx) // of a stream that is not read to its end
		defer cancel()
		stream, err := c.Get(ctx, &GetRequest{Kind: kind}, grpc.MaxCallRecvMsgSize(maxReplyBytes))
		for err == nil {
			var reply *GetReply
			reply, err = stream.Recv()
			for _, row := range reply.GetRows() {
				if !yield(row, nil) {
					return
				}
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(nil, err)
		}
	}
}
