package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
)

const service = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"selector":{"app":"web"},"ports":[{"port":80}]}}`

func TestApplySaysWhatChanged(t *testing.T) {
	b := newBench(t)
	for _, want := range []apiv1.Change{apiv1.Change_CHANGE_CREATED, apiv1.Change_CHANGE_CONFIGURED} {
		r, err := b.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(service)}})
		if err != nil {
			t.Fatal(err)
		}
		got := r.Results[0]
		if got.Kind != "Service" || got.Namespace != "default" || got.Name != "web" || got.Change != want || !json.Valid(got.Document) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestApplyRefusesAllOfABadInput(t *testing.T) {
	b := newBench(t)
	for name, docs := range map[string][]string{
		"nothing":              {},
		"a second that is bad": {service, `{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"port":[]}}`},
		"not JSON":             {`{"kind"`},
		"a pod":                {`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`},
		"no kind":              {`{}`},
		"zero bytes":           {""},
	} {
		r := &apiv1.ApplyRequest{}
		for _, d := range docs {
			r.Documents = append(r.Documents, []byte(d))
		}
		_, err := b.Apply(t.Context(), r)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v, want InvalidArgument", name, err)
		}
		if len(b.objects.held) != 0 {
			t.Errorf("%s: left %v behind", name, b.objects.held)
		}
	}
}

func TestApplyWithoutStore(t *testing.T) {
	b := newBench(t)
	b.objects.err = control.ErrUnavailable
	_, err := b.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(service)}})
	wantCode(t, err, codes.Unavailable)
}

func TestDelete(t *testing.T) {
	b := newBench(t)
	if _, err := b.Apply(t.Context(), &apiv1.ApplyRequest{Documents: [][]byte{[]byte(service)}}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		r    *apiv1.DeleteRequest
		want codes.Code
	}{
		{&apiv1.DeleteRequest{Kind: "widget", Name: "web"}, codes.InvalidArgument},
		{&apiv1.DeleteRequest{Kind: "service"}, codes.InvalidArgument},
		{&apiv1.DeleteRequest{Kind: "pod", Name: "web"}, codes.InvalidArgument},
		{&apiv1.DeleteRequest{Kind: "service", Namespace: "other", Name: "web"}, codes.NotFound},
		{&apiv1.DeleteRequest{Kind: "Services", Name: "web"}, codes.OK},
		{&apiv1.DeleteRequest{Kind: "service", Name: "web"}, codes.NotFound},
	} {
		if _, err := b.Delete(t.Context(), tt.r); status.Code(err) != tt.want {
			t.Errorf("%v: got %v, want %v", tt.r, err, tt.want)
		}
	}
}

func TestGet(t *testing.T) {
	b := newBench(t)
	b.rows = []any{map[string]any{"name": "a"}, map[string]any{"name": "b"}}
	var names []string
	for row, err := range b.Client.Rows(t.Context(), "nodes") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, string(row))
	}
	if len(names) != 2 || names[1] != `{"name":"b"}` {
		t.Errorf("%q", names)
	}
	b.rowsErr = &UnknownKindError{"widgets", "nodes or pods"}
	for _, err := range b.Client.Rows(t.Context(), "widgets") {
		wantCode(t, err, codes.InvalidArgument, `"widgets"`, "nodes or pods")
	}
}

// TestGetOfALongList sends more than any message may have, of which neither side holds more
// than a few replies: rows are made no sooner than they are sent.
func TestGetOfALongList(t *testing.T) {
	b := newBench(t)
	const rows, length = 3 << 10, 64 << 10 // 192 MiB
	row := strings.Repeat("x", length)
	var made atomic.Int64
	b.server.cfg.Rows = func(context.Context, string) (iter.Seq[any], error) {
		return func(yield func(any) bool) {
			for range rows {
				made.Add(1)
				if !yield(row) {
					return
				}
			}
		}, nil
	}
	got := int64(0)
	for text, err := range b.Client.Rows(t.Context(), "flows") {
		if err != nil {
			t.Fatal(err)
		}
		if got++; len(text) != length+2 {
			t.Fatalf("row %d has %d bytes", got, len(text))
		}
		if ahead := made.Load() - got; ahead > 8*maxBatchBytes/length {
			t.Fatalf("row %d: %d rows are made that nobody has taken", got, ahead)
		}
	}
	if got != rows {
		t.Errorf("%d rows of %d", got, rows)
	}
	// Who has seen enough ends it.
	for range b.Client.Rows(t.Context(), "flows") {
		break
	}
}

// TestAShortListIsOneReply is what clients rely on that know Get as a call with one answer.
func TestAShortListIsOneReply(t *testing.T) {
	b := newBench(t)
	for _, rows := range [][]any{nil, {1}, {1, 2, 3}} {
		b.rows = rows
		stream, err := b.Get(t.Context(), &apiv1.GetRequest{Kind: "nodes"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil || len(r.Rows) != len(rows) {
			t.Errorf("%d rows: %v, %v", len(rows), r, err)
		}
		if r, err = stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("%d rows: and then %v, %v", len(rows), r, err)
		}
	}
}
