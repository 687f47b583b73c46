package api_test

import (
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"vswitch/control/api"
	apiv1 "vswitch/control/api/v1"
)

// twins are the messages of calls with the generated ones.
var twins = map[proto.Message]any{
	&apiv1.AddPodRequest{}: api.AddPodRequest{}, &apiv1.AddPodReply{}: api.AddPodReply{},
	&apiv1.DelPodRequest{}: api.DelPodRequest{}, &apiv1.DelPodReply{}: api.DelPodReply{},
	&apiv1.CheckPodRequest{}: api.CheckPodRequest{}, &apiv1.CheckPodReply{}: api.CheckPodReply{},
	&apiv1.StatusRequest{}: api.StatusRequest{}, &apiv1.StatusReply{}: api.StatusReply{},
	&apiv1.GCRequest{}: api.GCRequest{}, &apiv1.GCReply{}: api.GCReply{},
	&apiv1.ListAttachmentsRequest{}: api.ListAttachmentsRequest{}, &apiv1.ListAttachmentsReply{}: api.ListAttachmentsReply{},
	&apiv1.VersionRequest{}: api.VersionRequest{}, &apiv1.VersionReply{}: api.VersionReply{},
}

func TestMessagesAreThoseOfTheAPI(t *testing.T) {
	for generated, plain := range twins {
		compare(t, generated.ProtoReflect().Descriptor(), reflect.TypeOf(plain))
	}
}

func compare(t *testing.T, want protoreflect.MessageDescriptor, have reflect.Type) {
	t.Helper()
	if string(want.Name()) != have.Name() || want.Fields().Len() != have.NumField() {
		t.Errorf("%s has %d fields, %s %d", want.Name(), want.Fields().Len(), have.Name(), have.NumField())
		return
	}
	for i := range have.NumField() {
		f := have.Field(i)
		d := want.Fields().ByNumber(protoreflect.FieldNumber(api.Number(f)))
		if d == nil || !strings.EqualFold(strings.ReplaceAll(string(d.Name()), "_", ""), f.Name) {
			t.Errorf("%s.%s is %v in the API", have.Name(), f.Name, d)
			continue
		}
		kind := f.Type
		if d.IsList() {
			kind = kind.Elem()
		}
		switch {
		case d.IsMap():
			if kind != reflect.TypeFor[map[string]string]() || d.MapKey().Kind() != protoreflect.StringKind || d.MapValue().Kind() != protoreflect.StringKind {
				t.Errorf("%s.%s is a %v", have.Name(), f.Name, kind)
			}
		case d.Kind() == protoreflect.MessageKind:
			compare(t, d.Message(), kind)
		case d.Kind().String() != kind.String():
			t.Errorf("%s.%s is a %v, in the API a %v", have.Name(), f.Name, kind, d.Kind())
		}
	}
}

// Whatever protobuf reads as a message, and writes again, is read as the same.
func FuzzReplyIsReadAsProtobufReadsIt(f *testing.F) {
	full, err := proto.Marshal(&apiv1.CheckPodReply{
		Attachment: &apiv1.Attachment{
			Key: &apiv1.AttachmentKey{Network: "n", ContainerId: "c"}, Pod: &apiv1.Pod{Labels: map[string]string{"a": "b"}},
			MtuBytes: 1500, Attached: true, PortMappings: []*apiv1.PortMapping{{HostPort: 1}, {}},
		},
		Gateways: []string{"169.254.1.1", ""},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte{0x0a, 0x05, 1})             // shorter than it says
	f.Add([]byte{0xf8, 0x07, 1, 0xfd, 7, 1}) // a field of the future, and half of one
	f.Add([]byte{0x0d, 1, 2, 3, 4, 0x11, 1}) // of fixed length
	f.Add([]byte{0x0a, 2, 0x30, 1, 0x10, 1}) // a string that is a number
	f.Fuzz(func(t *testing.T, b []byte) {
		var have api.CheckPodReply
		haveErr := api.Unmarshal(b, &have) // must not panic
		var want apiv1.CheckPodReply
		if proto.Unmarshal(b, &want) != nil {
			return
		}
		canonical, err := proto.Marshal(&want)
		if err != nil {
			t.Fatal(err)
		}
		var again api.CheckPodReply
		if err := api.Unmarshal(canonical, &again); err != nil {
			t.Fatalf("%x: %v", canonical, err)
		}
		if haveErr == nil && len(want.ProtoReflect().GetUnknown()) == 0 {
			var back apiv1.CheckPodReply
			if err := proto.Unmarshal(api.Marshal(&again), &back); err != nil {
				t.Fatalf("%x: %v", api.Marshal(&again), err)
			}
		}
	})
}

// What both decoders take means the same to both.
func FuzzUnmarshal(f *testing.F) {
	for _, m := range []proto.Message{
		&apiv1.ListAttachmentsReply{},
		&apiv1.ListAttachmentsReply{Attachments: []*apiv1.Attachment{{
			Key: &apiv1.AttachmentKey{ContainerId: "c", Ifname: "eth0"}, Queues: 2, Plain: true, Ips: []string{"10.244.0.2", "fd00::2"},
			Pod: &apiv1.Pod{Name: "web", Labels: map[string]string{"app": "web"}}, PortMappings: []*apiv1.PortMapping{{HostPort: 80}},
		}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ours, theirs api.ListAttachmentsReply
		var generated apiv1.ListAttachmentsReply
		if api.Unmarshal(b, &ours) != nil || proto.Unmarshal(b, &generated) != nil {
			return
		}
		again, err := proto.Marshal(&generated)
		if err != nil {
			t.Fatal(err)
		}
		if err := api.Unmarshal(again, &theirs); err != nil {
			t.Fatalf("%x, of %x: %v", again, b, err)
		}
		if !reflect.DeepEqual(ours, theirs) {
			t.Errorf("%x: %+v, want %+v", b, ours, theirs)
		}
	})
}
