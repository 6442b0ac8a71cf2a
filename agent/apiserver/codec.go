package apiserver

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// strictJSON is the JSON codec of the server: a field that it does not know is
// an error, where Connect's own drops it. Who writes "replica": 3 for
// "replicas" must not get a volume with one.
type strictJSON struct{ name string }

// Name is the name in the content type.
func (c strictJSON) Name() string { return c.name }

// Marshal leaves out fields that are not set, as Connect does.
func (c strictJSON) Marshal(m any) ([]byte, error) {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("marshal %T: not a protobuf message", m)
	}
	return protojson.Marshal(pm)
}

// Unmarshal refuses unknown fields and empty input.
func (c strictJSON) Unmarshal(b []byte, m any) error {
	pm, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal %T: not a protobuf message", m)
	}
	if len(b) == 0 {
		return fmt.Errorf("no JSON: an empty request is {}")
	}
	return protojson.Unmarshal(b, pm)
}
