"""Values to bytes and back."""
from __future__ import annotations
import sys
import msgpack
from activestore.errors import RemoteProtocolError, UnsupportedValueError, TooLargeError, ActiveStoreError, error_from_wire
from activestore.wire.limits import BUFFER_BYTES_MIN
TUPLE,SET,FROZEN,REF,ARRAY,BUF,PICKLE,ERR,BIG=1,2,3,12,13,20,19,18,4
class Ref(tuple): pass
class Opaque:
    def __init__(self,type_name,data): self.type_name=type_name; self._data=data; self.bytes_count=len(data)
class Array: pass
class _Enc:
    def __init__(self,ref_of,pickle): self.ref_of=ref_of; self.pickle=pickle; self.buffers=[]
    def hook(self,o):
        t=type(o)
        if t is tuple: return msgpack.ExtType(TUPLE,self.pack(list(o)))
        if t is set: return msgpack.ExtType(SET,self.pack(list(o)))
        if t is frozenset: return msgpack.ExtType(FROZEN,self.pack(list(o)))
        if t is int: return msgpack.ExtType(BIG,o.to_bytes(o.bit_length()//8+1,"big",signed=True))
        np=sys.modules.get("numpy")
        if np is not None and isinstance(o,np.generic): o=np.asarray(o)[()]; 
        if np is not None and isinstance(o,(np.ndarray,np.generic)):
            a=np.ascontiguousarray(o)
            if a.nbytes>=BUFFER_BYTES_MIN:
                self.buffers.append(memoryview(a.reshape(-1).view(np.uint8)))
                return msgpack.ExtType(ARRAY,msgpack.packb([a.dtype.str,list(o.shape),len(self.buffers)-1]))
            return msgpack.ExtType(ARRAY,msgpack.packb([a.dtype.str,list(o.shape),a.tobytes()]))
        if self.ref_of is not None:
            r=self.ref_of(o)
            if r is not None: return msgpack.ExtType(REF,bytes(r))
        if isinstance(o,ActiveStoreError): return msgpack.ExtType(ERR,self.pack([o.code,list(o.args)]))
        if self.pickle is not None:
            n,d=self.pickle(o); return msgpack.ExtType(PICKLE,msgpack.packb([n,d]))
        raise UnsupportedValueError(t.__name__,"value")
    def pack(self,v):
        return msgpack.packb(v,default=self.hook,strict_types=True,use_bin_type=True)
def encode(value,*,ref_of=None,pickle=None,path="value"):
    e=_Enc(ref_of,pickle)
    try: return e.pack(value), e.buffers
    except OverflowError: return e.pack(e.hook(value)), e.buffers
    except UnsupportedValueError as x: raise UnsupportedValueError(x.type_name,path) from None
def decode(data,buffers=(),*,resolve=None,unpickle=None):
    def hook(code,d):
        if code==TUPLE: return tuple(un(d))
        if code==SET: return set(un(d))
        if code==FROZEN: return frozenset(un(d))
        if code==BIG: return int.from_bytes(d,"big",signed=True)
        if code==REF: return resolve(d) if resolve else Ref((d,))
        if code==ARRAY:
            dt,sh,b=msgpack.unpackb(d)
            import numpy as np
            return np.frombuffer(buffers[b] if type(b) is int else b,dtype=dt).reshape(sh)
        if code==ERR:
            c,a=un(d); return error_from_wire(c,tuple(a))
        if code==PICKLE:
            n,b=msgpack.unpackb(d); return unpickle(n,b) if unpickle else Opaque(n,b)
        raise RemoteProtocolError("ext")
    def un(d):
        try: return msgpack.unpackb(d,ext_hook=hook,strict_map_key=False,raw=False)
        except ActiveStoreError: raise
        except Exception as x: raise RemoteProtocolError(str(x)) from None
    return un(data)
_E=msgpack.packb([[],{}])
def encode_arguments(args,kwargs,*,ref_of=None,pickle=None):
    if not args and not kwargs: return _E,[]
    return encode([list(args),kwargs],ref_of=ref_of,pickle=pickle,path="arguments")
def decode_arguments(data,buffers=(),*,resolve=None,unpickle=None):
    a,k=decode(data,buffers,resolve=resolve,unpickle=unpickle)
    return a,k
