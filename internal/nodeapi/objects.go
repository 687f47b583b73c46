package nodeapi

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
)

// Apply implements apiv1.NodeServer. Every document is read and checked, here and by
// the store, before the first is stored, so that a mistake in one changes nothing.
func (s *Server) Apply(ctx context.Context, r *apiv1.ApplyRequest) (*apiv1.ApplyReply, error) {
	var objs []control.Object
	for i, doc := range r.GetDocuments() {
		decoded, err := control.Decode(doc)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "object %d: %v", i+1, err)
		}
		objs = append(objs, decoded...)
	}
	if len(objs) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no document; want Kubernetes objects as JSON")
	}
	before, err := s.revisions(ctx, objs)
	if err != nil {
		return nil, statusOf(err)
	}
	stored, err := s.cfg.Objects.Apply(ctx, objs)
	if err != nil && len(stored) > 0 { // another writer came in between
		err = fmt.Errorf("%w (%d of %d objects are applied; apply the same again for the rest)", err, len(stored), len(objs))
	}
	if err != nil {
		return nil, statusOf(err)
	}
	reply := &apiv1.ApplyReply{}
	for _, o := range stored {
		result, err := objectResult(o, before)
		if err != nil {
			return nil, internal(err)
		}
		reply.Results = append(reply.Results, result)
	}
	return reply, nil
}

// revisions are the resource versions of all objects of the kinds in objs, from
// which a change is told.
func (s *Server) revisions(ctx context.Context, objs []control.Object) (map[control.Key]string, error) {
	found := map[control.Key]string{}
	listed := map[control.Kind]bool{}
	for _, o := range objs {
		kind := control.KindOf(o)
		if listed[kind] {
			continue
		}
		listed[kind] = true
		all, err := s.cfg.Objects.List(ctx, kind)
		if err != nil {
			return nil, err
		}
		for _, x := range all {
			found[control.KeyOf(x)] = x.GetResourceVersion()
		}
	}
	return found, nil
}

func objectResult(o control.Object, before map[control.Key]string) (*apiv1.ObjectResult, error) {
	doc, err := control.Encode(o)
	if err != nil {
		return nil, err
	}
	change := apiv1.Change_CHANGE_CONFIGURED
	switch was, ok := before[control.KeyOf(o)]; {
	case !ok:
		change = apiv1.Change_CHANGE_CREATED
	case was == o.GetResourceVersion():
		change = apiv1.Change_CHANGE_UNCHANGED
	}
	return &apiv1.ObjectResult{
		Kind: control.KindOf(o).String(), Namespace: o.GetNamespace(), Name: o.GetName(),
		Change: change, Document: doc,
	}, nil
}

// Delete implements apiv1.NodeServer.
func (s *Server) Delete(ctx context.Context, r *apiv1.DeleteRequest) (*apiv1.DeleteReply, error) {
	kind, err := control.ParseKind(r.GetKind())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	namespace := r.GetNamespace()
	switch {
	case kind == control.KindPod || kind == control.KindLease:
		return nil, status.Errorf(codes.InvalidArgument, "a %v can't be deleted: it goes with what it records; want a service, an endpointslice or a node", kind)
	case r.GetName() == "":
		return nil, status.Errorf(codes.InvalidArgument, "name \"\": want the name of a %v", kind)
	case kind == control.KindNode:
		namespace = ""
	case namespace == "":
		namespace = "default"
	}
	if err := s.cfg.Objects.Delete(ctx, kind, namespace, r.GetName()); err != nil {
		return nil, statusOf(err)
	}
	return &apiv1.DeleteReply{}, nil
}

// Get implements apiv1.NodeServer. One reply of rows is in memory at a time.
func (s *Server) Get(r *apiv1.GetRequest, stream apiv1.Node_GetServer) error {
	rows, err := s.cfg.Rows(stream.Context(), r.GetKind())
	if err != nil {
		return statusOf(err)
	}
	reply, length := &apiv1.GetReply{}, 0
	for row := range rows {
		text, err := json.Marshal(row)
		if err != nil {
			return internal(err)
		}
		if length > 0 && length+len(text) > maxBatchBytes {
			if s.stopping.Err() != nil {
				return status.Error(codes.Unavailable, "the daemon stops")
			}
			if err := stream.Send(reply); err != nil {
				return err
			}
			reply, length = &apiv1.GetReply{}, 0
		}
		reply.Rows, length = append(reply.Rows, text), length+len(text)
	}
	return stream.Send(reply) // of no rows too: some clients want one answer
}
