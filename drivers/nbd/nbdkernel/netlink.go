package nbdkernel

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Numbers of linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1
	groupName     = "nbd_mc_group"

	cmdConnect     = 1 // NBD_CMD_CONNECT
	cmdDisconnect  = 2 // NBD_CMD_DISCONNECT
	cmdReconfigure = 3 // NBD_CMD_RECONFIGURE
	cmdLinkDead    = 4 // NBD_CMD_LINK_DEAD, to the group
	cmdStatus      = 5 // NBD_CMD_STATUS

	attrIndex       = 1  // NBD_ATTR_INDEX, u32
	attrSize        = 2  // NBD_ATTR_SIZE_BYTES, u64
	attrBlockSize   = 3  // NBD_ATTR_BLOCK_SIZE_BYTES, u64
	attrTimeout     = 4  // NBD_ATTR_TIMEOUT, u64 seconds
	attrServerFlags = 5  // NBD_ATTR_SERVER_FLAGS, u64
	attrClientFlags = 6  // NBD_ATTR_CLIENT_FLAGS, u64
	attrSockets     = 7  // NBD_ATTR_SOCKETS, nested
	attrDeadConn    = 8  // NBD_ATTR_DEAD_CONN_TIMEOUT, u64 seconds
	attrDeviceList  = 9  // NBD_ATTR_DEVICE_LIST, nested
	attrIdentifier  = 10 // NBD_ATTR_BACKEND_IDENTIFIER, string

	sockItem = 1 // NBD_SOCK_ITEM, nested
	sockFD   = 1 // NBD_SOCK_FD, u32

	deviceItem      = 1 // NBD_DEVICE_ITEM, nested
	deviceIndex     = 1 // NBD_DEVICE_INDEX, u32
	deviceConnected = 2 // NBD_DEVICE_CONNECTED, u8
)

// request is what CONNECT and RECONFIGURE tell the kernel; zero values are
// left out.
type request struct {
	index       int
	size        int64
	blockSize   int
	timeout     time.Duration
	setTimeout  bool // send the time-out even if it is 0
	deadConn    time.Duration
	serverFlags uint64
	identifier  string
	sockets     []int
}

func (r *request) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(r.index))
	if r.size > 0 {
		e.Uint64(attrSize, uint64(r.size))
	}
	if r.blockSize > 0 {
		e.Uint64(attrBlockSize, uint64(r.blockSize))
	}
	if r.setTimeout {
		e.Uint64(attrTimeout, uint64(r.timeout/time.Second))
	}
	if r.deadConn > 0 {
		e.Uint64(attrDeadConn, uint64(r.deadConn/time.Second))
	}
	if r.serverFlags != 0 {
		e.Uint64(attrServerFlags, r.serverFlags)
	}
	if r.identifier != "" {
		e.String(attrIdentifier, r.identifier)
	}
	if len(r.sockets) > 0 {
		e.Nested(attrSockets, func(e *netlink.AttributeEncoder) error {
			for _, fd := range r.sockets {
				e.Nested(sockItem, func(e *netlink.AttributeEncoder) error {
					e.Uint32(sockFD, uint32(fd))
					return nil
				})
			}
			return nil
		})
	}
	return e.Encode()
}

// Status of a device as the kernel tells it.
type Status struct {
	Index     int
	Connected bool
}

// decodeStatus reads the answer to STATUS.
func decodeStatus(b []byte) ([]Status, error) {
	var out []Status
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil, fmt.Errorf("nbd status: %w", err)
	}
	for d.Next() {
		if d.Type() != attrDeviceList {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				if d.Type() != deviceItem {
					continue
				}
				var s Status
				d.Nested(func(d *netlink.AttributeDecoder) error {
					for d.Next() {
						switch d.Type() {
						case deviceIndex:
							s.Index = int(d.Uint32())
						case deviceConnected:
							s.Connected = d.Uint8() != 0
						}
					}
					return nil
				})
				out = append(out, s)
			}
			return nil
		})
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("nbd status: %w", err)
	}
	return out, nil
}

// call sends one command and returns the bodies of the answers.
func call(cmd uint8, attrs []byte) ([][]byte, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	defer c.Close()
	f, err := c.GetFamily(familyName)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the kernel has no nbd: %w", errdefs.ErrUnimplemented)
	}
	if err != nil {
		return nil, fmt.Errorf("netlink family nbd: %w", err)
	}
	msgs, err := c.Execute(genetlink.Message{Header: genetlink.Header{Command: cmd, Version: familyVersion}, Data: attrs}, f.ID, netlink.Request|netlink.Acknowledge)
	if err != nil {
		return nil, explain(err)
	}
	var out [][]byte
	for _, m := range msgs {
		out = append(out, m.Data)
	}
	return out, nil
}

// explain gives the kernel's errors their class.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("index in use: %w: %w", err, errdefs.ErrAlreadyExists)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("CAP_SYS_ADMIN is needed: %w: %w", err, errdefs.ErrPermissionDenied)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

// listener receives what the kernel tells of sockets that died.
type listener struct{ c *genetlink.Conn }

func listen() (*listener, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	f, err := c.GetFamily(familyName)
	for _, g := range f.Groups {
		if err == nil && g.Name == groupName {
			err = c.JoinGroup(g.ID)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return &listener{c: c}, nil
}

// next waits for a message and returns the index of its device, -1 if it is
// about something else. An error ends the listener.
func (l *listener) next() (int, error) {
	msgs, _, err := l.c.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return -1, nil // messages were lost; a socket stays dead, another serves
	}
	if err != nil {
		return -1, err
	}
	for _, m := range msgs {
		if m.Header.Command == cmdLinkDead {
			return decodeIndex(m.Data), nil
		}
	}
	return -1, nil
}

// decodeIndex finds NBD_ATTR_INDEX; -1 if there is none.
func decodeIndex(b []byte) int {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return -1
	}
	for d.Next() {
		if d.Type() == attrIndex {
			n := int(d.Uint32())
			if d.Err() == nil {
				return n
			}
		}
	}
	return -1
}

func (l *listener) close() { l.c.Close() }

// List returns the kernel's nbd devices.
func List() ([]Status, error) {
	// Without an index: all of them.
	answers, err := call(cmdStatus, nil)
	if err != nil {
		return nil, fmt.Errorf("nbd status: %w", err)
	}
	var out []Status
	for _, a := range answers {
		s, err := decodeStatus(a)
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, nil
}

func connect(r *request) error {
	b, err := r.encode()
	if err == nil {
		_, err = call(cmdConnect, b)
	}
	if err != nil {
		return fmt.Errorf("nbd connect %s: %w", Path(r.index), err)
	}
	return nil
}

func reconfigure(r *request) error {
	b, err := r.encode()
	if err == nil {
		_, err = call(cmdReconfigure, b)
	}
	if err != nil {
		return fmt.Errorf("nbd reconfigure %s: %w", Path(r.index), err)
	}
	return nil
}

func disconnect(index int) error {
	b, err := (&request{index: index}).encode()
	if err == nil {
		_, err = call(cmdDisconnect, b)
	}
	if err != nil {
		return fmt.Errorf("nbd disconnect %s: %w", Path(index), err)
	}
	return nil
}
